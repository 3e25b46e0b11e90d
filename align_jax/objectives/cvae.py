"""`cvae`: the second generator learns to tell images in a few numbers, given captions."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from align_jax.errors import require
from align_jax.losses.table import Losses
from align_jax.losses.variational import free_bits, gaussian_kl, gaussian_nll
from align_jax.models.cvae import Cvae, CvaeConfig
from align_jax.train.objective import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class ConditionalVae:
  """The evidence lower bound of images, given captions, and their error without having seen them.

  By the bound alone, latents tell colours as well as places, and the decoder never reads the
  caption; drawn from the prior they then tell colours that nobody asked for. So some images are
  decoded from latents of the prior: what the caption says is then to be had from it alone (Sohn et
  al. 2015, NeurIPS, section 4.2, the hybrid objective).

  Attributes:
    pixel_std: of the pixels around what the decoder says, in images of [-1, 1]. Smaller ones let
      latents say more: sharper, and further from what the prior can draw.
    kl_weight: of the KL term; 1 is the bound itself (Higgins et al. 2017, ICLR, call it β).
    free_bits: nats that each latent vector may say for nothing, see `losses.variational`. Instead
      of a weight that warms up: a step does not know how far training is.
    blind_share: of the images, those decoded from latents of the prior.
  """

  pixel_std: float = 0.2
  kl_weight: float = 1.0
  free_bits: float = 0.25
  blind_share: float = 0.3

  ModelConfig: ClassVar[type] = CvaeConfig
  texts: ClassVar[tuple[str, ...]] = ('plain',)
  batch_coupled: ClassVar[bool] = True  # free bits are of the batch's mean

  def __post_init__(self) -> None:
    require(self.pixel_std > 0, 'config.objective.pixel_std', f'{self.pixel_std} must be positive')
    for name in ('kl_weight', 'free_bits'):
      value = getattr(self, name)
      require(value >= 0, f'config.objective.{name}', f'{value} must be 0 or more')
    share = self.blind_share
    require(0 <= share < 1, 'config.objective.blind_share', f'{share} is outside [0, 1)')

  @property
  def generated_only(self) -> bool:
    return False

  @property
  def needs_partner(self) -> bool:
    return False

  def create_model(self, config: CvaeConfig, rngs: nnx.Rngs) -> Cvae:
    return Cvae(config, rngs)

  def trainable(self, name: str) -> bool:
    del name
    return True

  def prepare(self, batch: Batch, key: Array) -> Batch:
    # one seed an example: only the model knows how many numbers its latents are
    noise_key, blind_key = jax.random.split(key)
    count = len(batch['image'])
    return {
      **batch,
      'latent_seed': jax.random.bits(noise_key, (count,), jnp.uint32),
      'blind': jax.random.bernoulli(blind_key, self.blind_share, (count,)),
    }

  def embed(self, model: Cvae, batch: Batch) -> Batch:
    image = batch['image'].astype(jnp.float32) / 127.5 - 1
    noise = latent_noise(batch['latent_seed'], model.config)
    said = model(image, batch['text'], noise, batch['blind'])
    kl = gaussian_kl(*said.posterior, *said.prior)
    return {
      'nll': gaussian_nll(image, said.images, self.pixel_std),
      'kl': jnp.sum(kl, axis=-1),
      'error': jnp.mean(jnp.square(said.images - image), axis=(1, 2, 3)),
    }

  def loss(
    self, model: Cvae, outputs: Batch, batch: Batch, losses: Losses
  ) -> tuple[Array, Metrics]:
    del losses
    seen = ~batch['blind']
    nll = jnp.mean(outputs['nll'])
    # what was decoded blind owes nothing for its latents
    kl = jnp.mean(seen) * free_bits(outputs['kl'], self.free_bits, seen)
    metrics = {
      'kl': jnp.mean(jnp.sum(outputs['kl'], axis=1)),
      'seen_error': _mean(outputs['error'], seen),
      'blind_error': _mean(outputs['error'], batch['blind']),
    }
    # nats of a pixel's channel, so that learning rates do not depend on the image's size
    return (nll + self.kl_weight * kl) / (3 * model.config.image_size**2), metrics

  def flops(self, config: CvaeConfig) -> int:
    return 3 * config.flops


def _mean(values: Array, where: Array) -> Array:
  return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(1, jnp.sum(where))


def latent_noise(seeds: Array, config: CvaeConfig) -> Array:
  """Returns standard normal noise `[batch, latents, latent_dim]`, each row from its own seed."""
  shape = (config.latents, config.latent_dim)
  return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)
