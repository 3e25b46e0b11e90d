"""Scores of a model that embeds, at a level of its prompt."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from align_jax.embedder import ContentEmbedder, make_content_embedder
from align_jax.embedding_study.config import PromptLevel
from align_jax.errors import UserError
from align_jax.evaluation.contents import Embed
from align_jax.evaluation.mmeb import EMOJI_MMEB, evaluate
from align_jax.storage import AnyPath
from align_jax.train.checkpoints import load_params
from align_jax.train.run_config import read_run_config

if TYPE_CHECKING:
  from align_jax.data.pair_record import PairSource
else:
  PairSource = Any  # the shape check of the tests cannot follow a name that exists for mypy only


def embedder_of(run: AnyPath, level: PromptLevel) -> ContentEmbedder:
  """The embedder of a run, at any level: that of its training and its length do not count.

  Raises:
    UserError: no such run, or one of another model.
  """
  config = read_run_config(run)
  if not config.answers:
    raise UserError(
      f'{run}: not a run of a multimodal model; name one of configs/multimodal.py as config.base'
    )
  data = dataclasses.replace(config.data, length=level.length)
  params = load_params(run, averaged=True)
  return make_content_embedder(dataclasses.replace(config, data=data), params, run, level.name)


def scores(sources: Mapping[str, PairSource], embed: Embed, batch_size: int) -> dict[str, float]:
  """hit@1 of each task, of meta-tasks and averages, see `evaluation.mmeb.evaluate`."""
  return evaluate(sources, embed, EMOJI_MMEB, batch_size)
