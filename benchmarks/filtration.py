"""How well the filters find planted flaws, by similarity to real images and by the text.

  python -m benchmarks.filtration [--checkpoint=RUN] [--seeds=3] [--pictures=FILE.png]

Pools of drawn scenes with one object each: good ones, ones asked for as another class, noise,
objects whose parts were moved, no object at all, near-copies. `auc` is the probability that a good
image scores higher than a flawed one, by the mean cosine to the real images of the category, by
that to its ten nearest, and by the text. All of it for several ways to show instances to the
encoder (`synth/filtration/views.py`); `divergen` is the paper's. Without `--checkpoint` a small
dual encoder is trained first (`configs/clip.py`), which takes a few minutes.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from align_jax import api
from align_jax.data.sources import open_source
from align_jax.errors import UserError
from align_jax.evaluation.zero_shot import SCENE
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.filtration.pictures import draw_grid, reason_rows
from align_jax.synth.filtration.planted import (
  ALL_IMAGE_FLAWS,
  FOUND_BY,
  IMAGE_FLAWS,
  Findings,
  Pool,
  measure,
  plant,
)
from align_jax.synth.filtration.references import ReferenceConfig, make_references
from align_jax.synth.filtration.views import View
from align_jax.synth.generate import encode_png
from align_jax.synth.rows import Embedder
from align_jax.synth.trained import Trained
from benchmarks import common
from configs import clip

_SCENES = 'emoji:scenes?size=32&concepts=60&max_objects=1&captions=short'
# how real and generated instances are shown; `divergen` is the paper's way
_VIEWS: dict[str, tuple[View, View]] = {
  'divergen': ('blurred', 'black'),
  'black': ('black', 'black'),
  'blurred': ('blurred', 'blurred'),
  'whole': ('whole', 'whole'),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    checkpoint: a training run of a dual encoder on the emoji pack; '' trains one.
    steps: of that training.
    seeds: pools.
    count: images of a pool; a tenth has each flaw.
    references: real scenes that are compared with.
    nearest: neighbours of the score `nearest`.
    pictures: a PNG of kept and dropped images of the first pool; '' writes none.
  """

  checkpoint: str = ''
  steps: int = 1000
  seeds: int = 3
  count: int = 600
  references: int = 3000
  nearest: int = 10
  pictures: str = ''


def run(options: Options) -> dict[str, Any]:
  """Trains or loads the encoder, then measures every pool."""
  if options.seeds < 1:
    raise UserError(f'--seeds={options.seeds}: at least 1')
  with tempfile.TemporaryDirectory() as name:
    config = clip.get_config()
    config.steps = options.steps
    trained = Trained(options.checkpoint) if options.checkpoint else Trained(train=config.to_dict())
    spec = trained.find(Path(name) / 'encoder', 'encoder', '--checkpoint')
    found = measure_views(options, api.load(spec).encoder, Path(name))
  return {
    'benchmark': 'filtration',
    **common.machine(),
    'options': dataclasses.asdict(options),
    **found,
  }


def measure_views(options: Options, encoder: Embedder, folder: Path) -> dict[str, Any]:
  """Measures every pool with all views.

  Args:
    encoder: what embeds.
    folder: for embeddings of real images.
  """
  real = open_source(f'{_SCENES}&split=train&count={options.references}')
  others = open_source(f'{_SCENES}&split=extra&count={4 * options.count}')
  names = sorted({real[i].labels[0] for i in range(len(real))})
  pools = [plant(others, names, count=options.count, seed=seed) for seed in range(options.seeds)]
  out: dict[str, Any] = {}
  for view, (of_real, of_generated) in _VIEWS.items():
    filtration = FiltrationConfig(
      references=ReferenceConfig(of_real, of_generated, smallest=6, templates=SCENE)
    )
    references = make_references(
      filtration.references, names, real, encoder, 'encoder', folder / f'{view}.safetensors'
    )
    found = [measure(p, filtration, encoder, references, options.nearest) for p in pools]
    out[view] = {'real': len(references.embeddings), **summary(found)}
    common.say(f'{view}: {out[view]}')
    if options.pictures and view == 'blurred':
      write_pictures(options.pictures, pools[0], found[0])
  return {'categories': len(names), 'views': out}


def summary(found: list[Findings]) -> dict[str, Any]:
  """Every figure as mean and spread over the pools."""
  filters = {
    name: {
      field: _mean([getattr(f.filters[name], field) for f in found])
      for field in ('precision', 'recall', 'good_dropped')
    }
    for name in FOUND_BY
  }
  auc = {
    score: {flaw: _mean([f.auc[score][flaw] for f in found]) for flaw in found[0].auc[score]}
    for score in found[0].auc
  }
  wins = {
    flaw: {
      score: all(f.auc[score][flaw] > f.auc['text'][flaw] for f in found)
      for score in ('mean', 'nearest')
    }
    for flaw in (*IMAGE_FLAWS, ALL_IMAGE_FLAWS)
  }
  return {'filters': filters, 'auc': auc, 'beats_text_in_every_pool': wins}


def write_pictures(path: str, pool: Pool, found: Findings) -> None:
  """Writes kept and dropped images of a pool."""
  png = {row.id: encode_png(p) for row, p in zip(pool.images, pool.pictures, strict=True)}
  Path(path).write_bytes(draw_grid(reason_rows(found.decisions, png.get)))


def _mean(values: list[float | None]) -> dict[str, float | None]:
  numbers = [v for v in values if v is not None]
  if not numbers:
    return {'mean': None}
  return {
    'mean': round(float(np.mean(numbers)), 4),
    'std': round(float(np.std(numbers, ddof=1)), 4) if len(numbers) > 1 else 0.0,
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
