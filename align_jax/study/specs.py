"""The sources of a study, as specs, and what the placeholders of its config stand for."""

import dataclasses
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

  def names(self, generated: int, paired: int, init: str) -> dict[str, str]:
    """What the placeholders of a config stand for.

    `{extra_partners}` are the real images that share their captions with the unpaired generated
    ones: only the ceiling sees them.

    Args:
      generated: how many generated images are seen.
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
    }


def split_specs(config: StudyConfig, workdir: Path) -> Specs:
  """The splits of the study's real images, and where its generated images go."""

  def part(split: str, count: int) -> str:
    # class folders are sorted: unshuffled, the first records would be the first classes
    options = {'split': split, 'shuffle': 0} | ({'limit': count} if count else {})
    return with_options(config.data.real, **options)

  return Specs(
    real=part('train', config.data.train_count),
    extra=part('extra', config.data.extra_count),
    test=part('test', config.data.test_count),
    generated=f'arrayrecord:{workdir}/generated/train/*.arrayrecord',
    gap=f'arrayrecord:{workdir}/generated/gap/*.arrayrecord',
  )
