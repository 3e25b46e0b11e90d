"""`gmail`, stage 1: the generated track is aligned to the frozen real track (arXiv 2602.15368)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from align_jax.errors import UserError
from align_jax.losses.table import Losses
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.objectives.parts import part_of
from align_jax.train.objective import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Gmail:
  """One-way InfoNCE from generated images to their real partners, equation 1 of the paper.

  Attributes:
    form: `one_way` as the paper writes it, `symmetric`, or `sigmoid`.
    temperature: 0.07 in the paper; not learned.
    pair_weight: of the loss against real partners.
    text_weight: of `NCE(f_g(x_g), f_t(caption))`, which the paper speaks of without a formula; it
      is all that pairs without a real partner take part in.
    learn_projection: the generated projection learns along with the adapter, where there is one.
  """

  form: Literal['one_way', 'symmetric', 'sigmoid'] = 'one_way'
  temperature: float = 0.07
  pair_weight: float = 1.0
  text_weight: float = 0.0
  learn_projection: bool = True

  ModelConfig: ClassVar[type] = DualEncoderConfig
  texts: ClassVar[tuple[str, ...]] = ('plain',)
  batch_coupled: ClassVar[bool] = True

  def __post_init__(self) -> None:
    if self.temperature <= 0:
      raise UserError(f'config.objective.temperature: {self.temperature} must be positive')
    if min(self.pair_weight, self.text_weight) < 0 or not self.pair_weight + self.text_weight:
      raise UserError(
        'config.objective: pair_weight and text_weight must be 0 or more, and not both 0'
      )

  @property
  def generated_only(self) -> bool:
    return True

  @property
  def needs_partner(self) -> bool:
    return self.pair_weight > 0

  def create_model(self, config: DualEncoderConfig, rngs: nnx.Rngs) -> DualEncoder:
    return DualEncoder(config, rngs)

  def trainable(self, name: str) -> bool:
    part = part_of(name)
    return part == 'lora' or (part == 'generated_projection' and self.learn_projection)

  def prepare(self, batch: Batch, key: Array) -> Batch:
    del key  # nothing is random
    return batch

  def embed(self, model: DualEncoder, batch: Batch) -> Batch:
    outputs = {'generated': model.encode_image(batch['image'], 'generated')}
    if self.pair_weight:
      outputs['real'] = jax.lax.stop_gradient(model.encode_image(batch['partner'], 'real'))
    if self.text_weight:
      outputs['text'] = jax.lax.stop_gradient(model.encode_text(batch['text']))
    return outputs

  def loss(
    self, model: DualEncoder, outputs: Batch, batch: Batch, losses: Losses
  ) -> tuple[Array, Metrics]:
    del model  # the temperature is the method's own
    generated = outputs['generated']
    loss = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    if self.pair_weight:
      real = outputs['real']
      paired = batch['has_partner']
      pair_loss = losses.alignment_loss(
        generated, real, paired, temperature=self.temperature, form=self.form, group=batch['group']
      )
      loss += self.pair_weight * pair_loss
      cosine = jnp.sum(generated * real, axis=-1)
      count = jnp.maximum(1, jnp.sum(paired))
      metrics |= {
        'pair_loss': pair_loss,
        'paired_cosine': jnp.sum(jnp.where(paired, cosine, 0.0)) / count,
        'paired_share': jnp.mean(paired.astype(jnp.float32)),
      }
    if self.text_weight:
      group = batch['group']
      text_loss = losses.info_nce(generated, outputs['text'], 1 / self.temperature, group, group)
      loss += self.text_weight * text_loss
      metrics['text_loss'] = text_loss
    return loss, metrics

  def flops(self, config: DualEncoderConfig) -> int:
    # the backbone passes gradients on to the adapters and has none of its own
    partner = config.image_flops if self.pair_weight else 0
    return 2 * config.image_flops + partner + (config.text_flops if self.text_weight else 0)
