"""`saha`: a generative multimodal model learns to embed, from clusters of hard negatives."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from align_jax.errors import require
from align_jax.losses.table import Losses
from align_jax.models.last_token import last_hidden
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.train.objective import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Saha:
  """Every query against every candidate of the batch, those of its cluster among them.

  A batch is made of clusters (`data.pairs`): a query and those that are hard for it, each with its
  own positive. All of them are queries, and all candidates are negatives of each other's queries.

  Attributes:
    temperature: τ of the softmax, fixed.
    learn: `lora` the decoder's adapters alone; `decoder` all of it, its words aside, and the
      projector; `all`.
    same_candidate_is_positive: rows of equal candidates are positives of each other, where the
      paper pushes them apart.
  """

  temperature: float = 0.02
  learn: Literal['lora', 'decoder', 'all'] = 'lora'
  same_candidate_is_positive: bool = True

  ModelConfig: ClassVar[type] = MultimodalConfig
  texts: ClassVar[tuple[str, ...]] = ('pairs',)
  batch_coupled: ClassVar[bool] = True

  def __post_init__(self) -> None:
    require(
      self.temperature > 0, 'config.objective.temperature', f'{self.temperature} must be above 0'
    )

  @property
  def generated_only(self) -> bool:
    return False

  @property
  def needs_partner(self) -> bool:
    return False

  def create_model(self, config: MultimodalConfig, rngs: nnx.Rngs) -> Multimodal:
    require(
      self.learn != 'lora' or config.decoder.lora is not None,
      'config.model.decoder.lora',
      'none, but config.objective.learn says that it alone learns; set rank and alpha',
    )
    return Multimodal(config, rngs)

  def trainable(self, name: str) -> bool:
    parts = name.split('/')
    if name == 'decoder/token' or name.startswith('decoder/head/'):
      # an embedding needs no words to come out; the table is large and few of its rows are seen
      return self.learn == 'all'
    if self.learn == 'lora':
      return parts[0] == 'decoder' and 'lora' in parts
    return self.learn == 'all' or parts[0] in ('decoder', 'projector')

  def prepare(self, batch: Batch, key: Array) -> Batch:
    del key  # nothing is random
    return batch

  def embed(self, model: Multimodal, batch: Batch) -> Batch:
    gate = None
    if model.config.decoder.lora is not None:
      gate = jnp.ones(len(batch['query_tokens']), jnp.float32)
    return {
      side: last_hidden(
        model,
        batch[f'{side}_tokens'],
        batch[f'{side}_segment'],
        batch.get(f'{side}_image'),
        gate,
      )
      for side in ('query', 'candidate')
    }

  def loss(
    self, model: Multimodal, outputs: Batch, batch: Batch, losses: Losses
  ) -> tuple[Array, Metrics]:
    del model  # the temperature is fixed
    group = batch['group'] if self.same_candidate_is_positive else None
    query, candidate = outputs['query'], outputs['candidate']
    loss = losses.info_nce(query, candidate, 1 / self.temperature, group, group)
    return loss, {'positive_cosine': jnp.mean(jnp.sum(query * candidate, axis=-1))}

  def flops(self, config: MultimodalConfig) -> int:
    decoder = config.decoder.flops(config.length)
    tower = config.image.flops + config.projector_flops
    # adapters learn by a whole backward pass through the decoder, but none for its own weights
    passes = {'lora': (2, 1), 'decoder': (3, 1), 'all': (3, 3)}[self.learn]
    return 2 * (passes[0] * decoder + passes[1] * tower)  # query and candidate
