"""What the generators of our own share: their training run, and drawing in full batches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8

from align_jax.config import build
from align_jax.data.tokenizer import Tokenizer, load_tokenizer
from align_jax.errors import UserError
from align_jax.models.flat import Params
from align_jax.storage import open_path
from align_jax.synth.sampler import seed_words
from align_jax.train.checkpoints import load_params
from align_jax.train.run_config import read_run_config

C = TypeVar('C')
# text tokens and seed words of a full batch -> images, and whether all their numbers were finite
Draw: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class TrainedModel(Generic[C]):
  """A trained generator.

  Attributes:
    config: of the model.
    params: its weights by name.
    tokenizer, length: of its captions, and tokens of each.
  """

  config: C
  params: Params
  tokenizer: Tokenizer
  length: int


def load_model(
  run: str,
  objective: str,
  kind: type[C],
  *,
  averaged: bool = True,
  step: int | None = None,
  where: str = 'generator',
) -> TrainedModel[C]:
  """Reads a training run of a generator.

  Args:
    run: the run folder.
    objective: the name that its config must have.
    kind: dataclass of the model's config.
    averaged: the moving average of the weights where the run kept one.
    step: of the checkpoint; None: the newest.
    where: names the generator in messages.

  Raises:
    UserError: no such run, a run of another objective, no such checkpoint.
  """
  folder = open_path(run)
  config = read_run_config(folder)
  name = config.objective.get('name')
  if name != objective:
    raise UserError(f'{where}: {run} is a run of {name!r}; name one of configs/{objective}.py')
  return TrainedModel(
    config=build(kind, config.model_fields, f'{run}/config.json: model'),
    params=load_params(folder, averaged=averaged, step=step),
    tokenizer=load_tokenizer(folder / 'tokenizer'),
    length=config.data.length,
  )


def draw_full_batches(
  draw: Draw,
  prompts: Sequence[str],
  seeds: Sequence[int],
  batch_size: int,
  tokens: Callable[[Sequence[str]], np.ndarray],
) -> list[UInt8[np.ndarray, 'height width 3'] | None]:
  """Draws one image for each prompt, as `synth.rows.Generator` says.

  Short batches are filled up: one program draws every image, so that it is the same to the last bit
  whatever was drawn beside it.

  Raises:
    UserError: not as many seeds as prompts, or one outside 0 to 2**63 - 1.
  """
  if len(prompts) != len(seeds):
    raise UserError(f'generator: {len(prompts)} prompts, but {len(seeds)} seeds')
  out: list[np.ndarray | None] = []
  for start in range(0, len(prompts), batch_size):
    stop = min(start + batch_size, len(prompts))
    chosen = [min(i, stop - 1) for i in range(start, start + batch_size)]
    text = tokens([prompts[i] for i in chosen])
    images, finite = draw(text, seed_words([seeds[i] for i in chosen]))
    pixels, good = np.asarray(images), np.asarray(finite)
    out += [pixels[i] if good[i] else None for i in range(stop - start)]
  return out
