"""The sources of a study, as specs, and what the placeholders of its config stand for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from align_jax.data.sources.spec import with_options
from align_jax.study.config import StudyConfig


@dataclasses.dataclass(frozen=True)
class Specs:
  """The study's sources, as specs."""

  real: str
  extra: str
  test: str
  generated: str
  gap: str
  sets: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def names(self, generated: int, paired: int, init: str) -> dict[str, str]:
    """What the placeholders of a config stand for.

    `{extra_partners}` are the real images that share their captions with the unpaired generated
    ones: only the ceiling sees them.

    Args:
      generated: how many generated images are seen; of sets 0 is all.
      paired: of them, the first so many have a real partner that is seen, too.
      init: where weights come from.
    """
    return {
      'real': self.real,
      'extra': self.extra,
      'extra_partners': with_options(self.extra, limit=max(1, generated - paired)),
      'test': self.test,
      'generated': with_options(self.generated, limit=generated),
      'paired': with_options(self.generated, limit=min(generated, paired)),
      'init': init,
      **{f'set:{k}': with_options(v, limit=generated or None) for k, v in self.sets.items()},
    }


def model_folder(workdir: Path, name: str) -> Path:
  """Where a model that sets are made with is trained."""
  return workdir / 'models' / name


def set_folder(workdir: Path, name: str) -> Path:
  """The work folder of the engine that makes a set."""
  return workdir / 'sets' / name


def split_specs(config: StudyConfig, workdir: Path) -> Specs:
  """The splits of the study's real images, and where its generated images go."""

  def part(split: str, count: int, spec: str = config.data.real) -> str:
    # class folders are sorted: unshuffled, the first records would be the first classes
    options = {'split': split, 'shuffle': 0} | ({'limit': count} if count else {})
    return with_options(spec, **options)

  return Specs(
    real=part('train', config.data.train_count),
    extra=part('extra', config.data.extra_count),
    test=part('test', config.data.test_count, config.data.test or config.data.real),
    generated=f'arrayrecord:{workdir}/generated/train/*.arrayrecord',
    gap=f'arrayrecord:{workdir}/generated/gap/*.arrayrecord',
    sets={k: f'arrayrecord:{set_folder(workdir, k)}/shards/*.arrayrecord' for k in config.sets},
  )
