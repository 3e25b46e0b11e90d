"""Report sections made from features: the same pieces for the demo, evaluate and the study."""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.data.sources.base import Source
from align_jax.evaluation import gap, pictures, plots
from align_jax.evaluation.features import Features
from align_jax.evaluation.report import Details, Figure, Figures, Pictures
from align_jax.evaluation.tasks import Pairs

_PACKAGES = ('align_jax', 'jax', 'flax', 'optax', 'grain', 'numpy', 'scikit-learn', 'umap-learn')


def umap_section(
  pairs: Mapping[str, Pairs], *, most: int = 1000, links: int = 12, seed: int = 0
) -> Figures:
  """Returns a map of real and generated embeddings for each name (`before`, `after`).

  Args:
    pairs: features under one or several encoders, over the same sources.
    most: at most so many pairs, drawn at random; the same in every map.
    links: so many pairs are joined by a line.
  """
  items = []
  legend = ((plots.REAL, 'real'), (plots.GENERATED, 'generated'))
  for name, features in pairs.items():
    real_rows, generated_rows = _draw(features, most, seed)
    # A real image that several generated ones share is one point.
    points, place = np.unique(real_rows, return_inverse=True)
    real, generated = plots.umap_map(
      features.real.image[points], features.generated.image[generated_rows], seed
    )
    joined = [(int(place[i]), i) for i in range(min(links, len(place)))]
    items.append(Figure(plots.scatter(real, generated, joined), name, legend))
  return Figures(
    'Map of real and generated images',
    tuple(items),
    'UMAP of the embeddings; grey lines join a few pairs. Where the colours mix, the model '
    'treats both kinds alike.',
  )


def cosine_section(pairs: Mapping[str, Pairs]) -> Figures:
  """Returns the histogram of paired cosines, one outline a name."""
  cosines = {
    name: gap.paired_cosines(p.real.image[p.real_rows], p.generated.image[p.generated_rows])
    for name, p in pairs.items()
  }
  return Figures(
    'Modality gap',
    (Figure(plots.cosine_histogram(cosines), 'Cosine of each generated image and its partner.'),),
    'Further right: nearer to the partner. The dashed lines are the means.',
  )


def sample_section(
  generated: Source, partners: Source, features: Pairs, *, count: int = 12, seed: int = 0
) -> Pictures:
  """Returns pairs drawn at random: real image, generated partner, prompt."""
  _, rows = _draw(features, count, seed)
  ids = [features.generated.ids[i] for i in rows]
  return Pictures(
    'Generated images beside their partners',
    pictures.pair_rows(generated, partners, ids),
    'Drawn at random, not chosen.',
  )


def neighbour_section(
  pairs: Mapping[str, Pairs], real: Source, generated: Source, *, count: int = 4, seed: int = 0
) -> Pictures:
  """Returns real images drawn at random, each with the generated images nearest to it."""
  rows, _ = _draw(next(iter(pairs.values())), len(next(iter(pairs.values())).real_rows), seed)
  features = next(iter(pairs.values())).real
  queries = list(dict.fromkeys(features.ids[i] for i in rows))[:count]
  return Pictures(
    'Nearest neighbours across modalities',
    pictures.neighbour_rows(pairs, real, generated, queries),
    'Left a real image, then the five nearest generated images with their cosine; its own partner '
    'is framed.',
  )


def retrieval_sections(
  features: Features, source: Source, *, count: int = 6, seed: int = 0
) -> tuple[Pictures, Pictures]:
  """Returns retrieval examples, drawn at random, and the worst failures."""
  examples = pictures.retrieval_rows(features, source, which='examples', count=count, seed=seed)
  failures = pictures.retrieval_rows(features, source, which='failures', count=count)
  return (
    Pictures(
      'Retrieval examples',
      examples,
      'Captions drawn at random and the three images found first.',
    ),
    Pictures(
      'Worst failures',
      failures,
      'The captions whose right image stands lowest: the right image, then the three wrong ones '
      'found first.',
    ),
  )


def run_details(
  command: Sequence[str],
  config: Any,
  licences: Mapping[str, str],
  timings: Mapping[str, float] | None = None,
) -> Details:
  """Returns the section that lets a reader repeat the run.

  Args:
    command: the words of the command line.
    config: a dataclass, a `ConfigDict`, or plain values.
    licences: spec of each source to its licence and attribution.
    timings: what was done to how many seconds it took.
  """
  items = [
    ('Command', shlex.join(command)),
    ('Versions', '\n'.join(f'{name} {version}' for name, version in versions().items())),
    ('Config', json.dumps(_plain(config), indent=2, ensure_ascii=False, default=str)),
  ]
  lines = [f'{spec}: {licence or "licence not recorded"}' for spec, licence in licences.items()]
  if lines:
    items.append(('Licence and attribution', '\n'.join(lines)))
  if timings:
    width = max(map(len, timings))
    items.append(
      ('Timings', '\n'.join(f'{name:<{width}}  {s:8.1f} s' for name, s in timings.items()))
    )
  return Details('How this was made', tuple(items))


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that decide the numbers."""
  out = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # run from a folder that was never installed
  return out


def _draw(features: Pairs, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws pairs at random: rows of the real and of the generated images.

  The draw goes by the ids, so that every encoder's picture shows the same pairs.
  """
  ids = np.asarray([features.generated.ids[i] for i in features.generated_rows])
  order = np.argsort(ids, kind='stable')
  chosen = order[np.random.default_rng(seed).permutation(len(order))[:count]]
  return features.real_rows[chosen], features.generated_rows[chosen]


def _plain(config: Any) -> Any:
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    return dataclasses.asdict(config)
  return config.to_dict() if hasattr(config, 'to_dict') else config
