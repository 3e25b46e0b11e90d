"""A track's towers as serialised functions that need JAX alone, for CPU, GPU and TPU in one file.

from jax import export
embed_images = export.deserialize(open('image.stablehlo', 'rb').read()).call
vectors = embed_images(images)     # uint8 [n, size, size, 3] -> float32 [n, dim], unit norm

"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from align_jax.errors import UserError
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Params, Skeleton

PLATFORMS = ('cpu', 'cuda', 'tpu')
IMAGE, TEXT = 'image.stablehlo', 'text.stablehlo'
_LARGEST = 2**31 - 1  # bytes, of the format


def write_functions(folder: Path, config: DualEncoderConfig, params: Params, length: int) -> None:
  """Writes `image.stablehlo` and `text.stablehlo`, the weights inside, for any batch size.

  Args:
    folder: where to.
    config: of a plain track.
    params: its parameters by name.
    length: tokens of a text.

  Raises:
    UserError: a tower too large for one file.
  """
  skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))
  params = {name: jnp.asarray(value) for name, value in params.items()}
  (batch,) = export.symbolic_shape('batch')
  side = config.image.image_size
  inputs = {
    IMAGE: jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
    TEXT: jax.ShapeDtypeStruct((batch, length), jnp.int32),
  }
  functions = {
    IMAGE: lambda images: skeleton.bind(params).encode_image(images),
    TEXT: lambda tokens: skeleton.bind(params).encode_text(tokens),
  }
  for name, function in functions.items():
    size = sum(p.nbytes for n, p in params.items() if n.startswith(name.partition('.')[0]))
    if size > _LARGEST:
      raise UserError(
        f'--format=stablehlo: {name} would hold {size / 2**30:.1f} GiB of weights, more than one '
        'such file can; use --format=transformers'
      )
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(inputs[name])
    (folder / name).write_bytes(exported.serialize())
