"""Random autoencoders of diffusers: PyTorch and ours agree from the same folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from align_jax.errors import UserError
from align_jax.interop.autoencoder import (
  WEIGHTS,
  export_autoencoder,
  load_autoencoder,
  read_autoencoder,
  write_config,
)
from align_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Skeleton
from align_jax.parallel.mesh import RULES, MeshConfig, make_mesh
from align_jax.train.state import param_shardings
from tests.interop import tools

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

MODELS = {
  'plain': {'block_out_channels': (8, 16)},
  'no attention': {'block_out_channels': (8, 8), 'mid_block_add_attention': False},
  'no quant': {
    'block_out_channels': (16,),
    'use_quant_conv': False,
    'use_post_quant_conv': False,
    'shift_factor': 0.3,
    'scaling_factor': 1.5,
    'latent_channels': 3,
  },
  'deep': {'block_out_channels': (8, 16, 16, 24), 'layers_per_block': 2, 'act_fn': 'swish'},
}


def make(**changes):
  levels = len(changes['block_out_channels'])
  fields = {
    'down_block_types': ('DownEncoderBlock2D',) * levels,
    'up_block_types': ('UpDecoderBlock2D',) * levels,
    'norm_num_groups': 4,
    **changes,
  }
  return tools.randomise(diffusers.AutoencoderKL(**fields))


def ours(folder):
  config = read_autoencoder(folder)
  skeleton = Skeleton(lambda rngs: Autoencoder(config, rngs))
  return config, skeleton, load_autoencoder(folder, skeleton.shapes)


@pytest.mark.parametrize('name', MODELS)
def test_encode_and_decode(tmp_path, name):
  theirs = make(**MODELS[name])
  config, skeleton, params = ours(tools.save(theirs, tmp_path))
  assert {n: p.shape for n, p in params.items()} == {n: s.shape for n, s in skeleton.shapes.items()}
  images, pixels = tools.pictures(16, 2)
  images, pixels = images[:, :8], pixels[:, :, :8]  # not square
  rows, columns = 8 // config.factor, 16 // config.factor
  latents = np.random.default_rng(0).normal(size=(2, rows, columns, config.latent_channels))
  images = jnp.asarray(images, jnp.float32) / 127.5 - 1
  latents = latents.astype(np.float32)

  @jax.jit
  def run(params, latents):
    model = skeleton.bind(params)
    return model.encode(images), model.decode(latents), model.to_images(latents)

  got, decoded, scaled = run(params, jnp.asarray(latents))
  with torch.no_grad():
    posterior = theirs.encode(torch.tensor(pixels)).latent_dist
    z = torch.tensor(latents).permute(0, 3, 1, 2)
    expected = theirs.decode(z).sample
    # as pipelines undo the scale before they decode
    c = theirs.config
    undone = theirs.decode(z / c.scaling_factor + (c.shift_factor or 0.0)).sample

  def close(a, b):
    np.testing.assert_allclose(a, b.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-4)

  close(got.mean, posterior.mean)
  close(got.log_var, posterior.logvar)
  close(decoded, expected)
  close(scaled, undone)


@pytest.mark.parametrize('name', MODELS)
def test_out_and_in_again_is_the_same_bit_for_bit(tmp_path, name):
  theirs = make(**MODELS[name])
  tools.save(theirs, tmp_path)
  config, _, params = ours(tmp_path)
  there = load_file(tmp_path / WEIGHTS)
  written = export_autoencoder(config, params)
  assert written.keys() == there.keys()
  assert all(np.array_equal(written[n], there[n]) for n in there)
  again = diffusers.AutoencoderKL.from_config(write_config(config))
  again.load_state_dict({n: torch.tensor(v) for n, v in written.items()})
  (tmp_path / 'config.json').write_text(json.dumps(write_config(config)))
  assert read_autoencoder(tmp_path) == config


def test_names_and_shapes_of_files_from_before_2023(tmp_path):
  tools.save(make(**MODELS['plain']), tmp_path)
  _, _, expected = ours(tmp_path)
  new = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
  tensors = {}
  for name, value in load_file(tmp_path / WEIGHTS).items():
    part = next((p for p in new if f'.{p}.' in name), None)
    if part is not None and name.endswith('weight'):
      value = value[..., None, None]  # as 1x1 convolutions
    tensors[name.replace(part, new[part]) if part else name] = value
  save_file(tensors, tmp_path / WEIGHTS)
  config = json.loads((tmp_path / 'config.json').read_text())
  for field in ('use_quant_conv', 'mid_block_add_attention', 'shift_factor'):
    del config[field]  # not there yet: the default counts
  (tmp_path / 'config.json').write_text(json.dumps(config))
  _, _, params = ours(tmp_path)
  assert params.keys() == expected.keys()
  assert all(np.array_equal(params[n], expected[n]) for n in params)


def test_a_model_that_holds_one_takes_its_weights(tmp_path):
  folder = tools.save(make(**MODELS['plain']), tmp_path)
  config = DitConfig(image_size=16, patch=2, width=16, autoencoder=read_autoencoder(folder))
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  params = load_autoencoder(folder, skeleton.shapes, 'autoencoder/')
  held = {n for n in skeleton.shapes if n.startswith('autoencoder/')}
  assert set(params) == held and len(held) > 50
  _, _, alone = ours(folder)
  assert all(np.array_equal(alone[n.removeprefix('autoencoder/')], params[n]) for n in params)
  mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
  placed = load_autoencoder(
    folder, skeleton.shapes, 'autoencoder/', param_shardings(skeleton, mesh, RULES)
  )
  assert all(np.array_equal(placed[n], params[n]) for n in params)
  assert len(placed['autoencoder/quant/bias'].sharding.device_set) == 2


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'_class_name': 'VQModel'}, "_class_name is 'VQModel'"),
    ({'act_fn': 'mish'}, "act_fn='mish' is not supported, only 'silu' or 'swish'"),
    ({'in_channels': 4}, 'in_channels=4'),
    ({'latents_mean': [0.0] * 4}, 'latents_mean'),
    ({'up_block_types': ['AttnUpDecoderBlock2D', 'UpDecoderBlock2D']}, "'AttnUpDecoderBlock2D'"),
    ({'down_block_types': ['DownEncoderBlock2D']}, '1 down_block_types, but 2'),
    ({'norm_num_groups': 3}, '8 is not divisible by 3 groups'),
    ({'spatial_norm': True}, 'spatial_norm is not supported'),
  ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, named):
  tools.save(make(**MODELS['plain']), tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(config | changes))
  with pytest.raises(UserError, match=named) as error:
    read_autoencoder(tmp_path)
  assert 'config.json' in str(error.value)


def test_damaged_folders_are_named(tmp_path):
  with pytest.raises(UserError, match=r'config\.json: missing'):
    read_autoencoder(tmp_path)
  tools.save(make(**MODELS['plain']), tmp_path)
  config, skeleton, _ = ours(tmp_path)
  weights = tmp_path / WEIGHTS
  tensors = load_file(weights)
  name = 'decoder.conv_in.weight'

  def refused(named, changed):
    save_file(changed, weights)
    with pytest.raises(UserError, match=named):
      load_autoencoder(tmp_path, skeleton.shapes)

  refused(f'no tensor {name!r} of shape', {n: v for n, v in tensors.items() if n != name})
  refused('has no place', {**tensors, 'more': np.zeros(2, np.float32)})
  refused('config.json asks for', {**tensors, name: tensors[name][:, :, :1].copy()})
  refused('is of type I32', {**tensors, name: tensors[name].astype(np.int32)})
  weights.write_bytes(b'cut short')
  with pytest.raises(UserError, match='copy the file again'):
    load_autoencoder(tmp_path, skeleton.shapes)
  weights.unlink()
  with pytest.raises(UserError, match='missing; name a folder'):
    load_autoencoder(tmp_path, skeleton.shapes)
  (tmp_path / 'diffusion_pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UserError, match='pickled'):
    load_autoencoder(tmp_path, skeleton.shapes)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UserError, match='not JSON'):
    read_autoencoder(tmp_path)
  other = AutoencoderConfig(widths=(8, 16), blocks=1, groups=4, attention=False)
  small = Skeleton(lambda rngs: Autoencoder(other, rngs))
  tools.save(make(**MODELS['plain']), tmp_path)
  with pytest.raises(UserError, match='which this model has no'):
    load_autoencoder(tmp_path, small.shapes)
  assert config.attention
