"""`contrastive`: image-text learning from scratch or from given weights, either tower lockable."""

import dataclasses
from typing import ClassVar, Literal

from flax import nnx
from jax import Array

from align_jax.losses.table import Losses
from align_jax.modality import Modality
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.objectives.parts import Part, learns
from align_jax.train.objective import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Contrastive:
  """Every image against every caption of the batch.

  Attributes:
    form: `softmax` (CLIP, Radford et al. 2021) or `sigmoid` (SigLIP, Zhai et al. 2023).
    route: `none` sends all images through the real track whatever their modality (the naive mix);
      `modality` sends generated images through the generated track.
    lock: parts of the model that do not learn. Locking `image` is LiT (Zhai et al. 2022); locking
      all image parts with `route = modality` is GMAIL's second stage, where the text side learns
      from generated images through the aligned track.
    same_caption_is_positive: rows with equal captions are positives of each other; otherwise two
      images of one caption would be pushed apart.
  """

  form: Literal['softmax', 'sigmoid'] = 'softmax'
  route: Literal['none', 'modality'] = 'none'
  lock: tuple[Part, ...] = ('lora', 'generated_projection')
  same_caption_is_positive: bool = True

  ModelConfig: ClassVar[type] = DualEncoderConfig
  texts: ClassVar[tuple[str, ...]] = ('plain',)
  batch_coupled: ClassVar[bool] = True

  @property
  def generated_only(self) -> bool:
    return False

  @property
  def needs_partner(self) -> bool:
    return False

  def create_model(self, config: DualEncoderConfig, rngs: nnx.Rngs) -> DualEncoder:
    return DualEncoder(config, rngs)

  def trainable(self, name: str) -> bool:
    return learns(name, self.lock)

  def prepare(self, batch: Batch, key: Array) -> Batch:
    del key  # nothing is random
    return batch

  def embed(self, model: DualEncoder, batch: Batch) -> Batch:
    modality: Array | Modality = batch['modality'] if self.route == 'modality' else 'real'
    return {
      'image': model.encode_image(batch['image'], modality),
      'text': model.encode_text(batch['text']),
    }

  def loss(
    self, model: DualEncoder, outputs: Batch, batch: Batch, losses: Losses
  ) -> tuple[Array, Metrics]:
    image, text = outputs['image'], outputs['text']
    group = batch['group'] if self.same_caption_is_positive else None
    if self.form == 'sigmoid':
      loss = losses.sigmoid_loss(image, text, model.scale, model.bias, group, group)
    else:
      loss = losses.symmetric_info_nce(image, text, model.scale, group, group)
    return loss, {'scale': model.scale}

  def flops(self, config: DualEncoderConfig) -> int:
    image = 'image' in self.lock and 'image_projection' in self.lock
    # a locked tower that adapters learn in passes gradients on, but none to its own weights
    passes = 1 if image else 3
    if image and self.route == 'modality' and config.lora is not None and 'lora' not in self.lock:
      passes = 2
    return passes * config.image_flops + (1 if 'text' in self.lock else 3) * config.text_flops
