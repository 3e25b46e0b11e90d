"""`caption`: a multimodal model learns to answer about images; the prompts are given."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from align_jax.errors import require
from align_jax.losses.language import language_sums
from align_jax.losses.table import Losses
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.train.objective import Batch, Metrics

Part = Literal['image', 'image_lora', 'projector', 'decoder', 'decoder_lora']


def part_of(name: str) -> Part:
  """Returns the part of a multimodal model that the parameter `name` belongs to."""
  top = name.split('/')[0]
  return f'{top}_lora' if 'lora' in name.split('/') else top  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Caption:
  """The likelihood of answers, given image and question (LLaVA, arXiv 2304.08485, equation 1).

  Attributes:
    weight: `token` is the mean over the answers' tokens of the whole batch, however it is split: a
      token of a short answer weighs as much as one of a long answer. `answer` is the mean over
      answers of the means over their tokens: a yes or no weighs as much as a whole caption.
    route: `none` sends all images through the plain tower whatever their modality (the naive mix);
      `modality` sends generated images through its adapters.
    lock: parts of the model that do not learn. LLaVA's first stage locks `image` and `decoder`.
      With `route = modality`, `image` and `image_lora` locked, this is GMAIL's second stage: a
      captioner learns from generated images through the aligned track.
  """

  weight: Literal['token', 'answer'] = 'token'
  route: Literal['none', 'modality'] = 'none'
  lock: tuple[Part, ...] = ()

  ModelConfig: ClassVar[type] = MultimodalConfig
  texts: ClassVar[tuple[str, ...]] = ('captions', 'questions')
  # the mean of micro batches' means is another mean where their answers differ in length
  batch_coupled: ClassVar[bool] = True

  @property
  def generated_only(self) -> bool:
    return False

  @property
  def needs_partner(self) -> bool:
    return False

  def create_model(self, config: MultimodalConfig, rngs: nnx.Rngs) -> Multimodal:
    require(
      self.route == 'none' or config.image_lora is not None,
      'config.model.image_lora',
      "none, but config.objective.route='modality' sends generated images through it",
    )
    return Multimodal(config, rngs)

  def trainable(self, name: str) -> bool:
    part = part_of(name)
    return part not in self.lock and not (part == 'image_lora' and self.route == 'none')

  def prepare(self, batch: Batch, key: Array) -> Batch:
    del key  # nothing is random
    return batch

  def embed(self, model: Multimodal, batch: Batch) -> Batch:
    tokens, segment = batch['tokens'], batch['segment']
    generated = batch['modality'].astype(jnp.float32)
    hidden = model(
      tokens,
      segment,
      batch['image'][:, None],
      gate=None if model.config.decoder.lora is None else jnp.ones_like(generated),
      image_gate=generated if self.route == 'modality' else None,
    )
    return language_sums(model.decoder.logits(hidden), tokens, segment, batch['answer'])

  def loss(
    self, model: Multimodal, outputs: Batch, batch: Batch, losses: Losses
  ) -> tuple[Array, Metrics]:
    del model, batch, losses
    tokens = jnp.maximum(1.0, jnp.sum(outputs['count']))
    texts = jnp.maximum(1.0, jnp.sum(outputs['texts']))
    metrics = {
      'token_accuracy': jnp.sum(outputs['right']) / tokens,
      # of whole answers, each token given the right ones before it
      'answer_accuracy': jnp.sum(outputs['whole']) / texts,
    }
    if self.weight == 'token':
      return jnp.sum(outputs['nll']) / tokens, metrics
    return jnp.sum(outputs['mean_nll']) / texts, metrics

  def flops(self, config: MultimodalConfig) -> int:
    """What does not learn passes gradients on to what comes before it, if that learns."""
    adapters = config.image_lora is not None and self.trainable('image/lora')
    image = 'image' not in self.lock
    projector = 'projector' not in self.lock
    decoder = 'decoder' not in self.lock
    return (
      (3 if image else 2 if adapters else 1) * config.image.flops
      + (3 if projector else 2 if image or adapters else 1) * config.projector_flops
      + (3 if decoder else 2) * config.decoder_flops
    )
