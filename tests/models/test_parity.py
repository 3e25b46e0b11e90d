"""Randomly initialised PyTorch towers of `transformers`, carried over weight by weight."""

import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Skeleton
from align_jax.models.text import TextConfig
from align_jax.models.vit import VitConfig, interpolate_positions
from tests.models import tiny

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WIDTH, DEPTH, HEADS, MLP, DIM, VOCAB, LENGTH = 24, 2, 3, 40, 10, 50, 9
EOT, PAD = 49, 1
SIZES = {
  'hidden_size': WIDTH,
  'num_hidden_layers': DEPTH,
  'num_attention_heads': HEADS,
  'intermediate_size': MLP,
}
TOWER = {'width': WIDTH, 'depth': DEPTH, 'heads': HEADS, 'mlp_dim': MLP}


class Weights:
  """A PyTorch state as our parameters: transposed kernels, fused query, key and value."""

  def __init__(self, model, scale: float = 1.0):
    torch.manual_seed(0)
    for parameter in model.parameters():
      # biases and norms too, or a mix-up of two of them would go unseen
      torch.nn.init.normal_(parameter, std=scale * 0.2)
    model.eval()
    self.state = {k: v.detach().numpy() for k, v in model.state_dict().items()}

  def linear(self, ours, *theirs, bias=True):
    out = {f'{ours}/kernel': np.concatenate([self.state[f'{t}.weight'].T for t in theirs], 1)}
    if bias:
      out[f'{ours}/bias'] = np.concatenate([self.state[f'{t}.bias'] for t in theirs])
    return out

  def norm(self, ours, theirs):
    return {
      f'{ours}/scale': self.state[f'{theirs}.weight'],
      f'{ours}/bias': self.state[f'{theirs}.bias'],
    }

  def blocks(self, ours, theirs):
    layers = [self.block(f'{ours}/blocks/layer', f'{theirs}.{i}') for i in range(DEPTH)]
    return {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}

  def block(self, a, b):
    qkv = [f'{b}.self_attn.{name}_proj' for name in 'qkv']
    out = self.norm(f'{a}/norm1', f'{b}.layer_norm1') | self.norm(f'{a}/norm2', f'{b}.layer_norm2')
    out |= self.linear(f'{a}/attention/qkv', *qkv)
    out |= self.linear(f'{a}/attention/out', f'{b}.self_attn.out_proj')
    return out | (
      self.linear(f'{a}/mlp/up', f'{b}.mlp.fc1') | self.linear(f'{a}/mlp/down', f'{b}.mlp.fc2')
    )

  def patches(self, theirs, *, bias):
    kernel = self.state[f'{theirs}.weight'].transpose(2, 3, 1, 0)
    out = {'image/patch_embed/kernel': kernel.reshape(-1, WIDTH)}
    return out | ({'image/patch_embed/bias': self.state[f'{theirs}.bias']} if bias else {})


def _model(config: DualEncoderConfig, *towers: dict[str, np.ndarray]) -> DualEncoder:
  """The model with those weights; the tower that is not compared keeps its own."""
  skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))
  given = {k: v for tower in towers for k, v in tower.items()}
  prefixes = {name.split('/')[0] for name in given}
  params = {}
  for name, shape in skeleton.shapes.items():
    if name.split('/')[0] in prefixes:
      assert given[name].shape == shape.shape, name
      params[name] = jnp.asarray(given.pop(name))
    else:
      params[name] = jnp.asarray(np.zeros(shape.shape, np.float32))
  assert not given
  return skeleton.bind(params)


def _images(size: int) -> tuple[np.ndarray, 'torch.Tensor']:
  images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
  pixels = (images / 255.0 - 0.5) / 0.5
  return images, torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def _words(pad: int, last: int) -> np.ndarray:
  words = np.random.default_rng(0).integers(3, last, (4, LENGTH))
  for row, end in zip(words, (3, 5, 8, 1), strict=True):
    row[end], row[end + 1 :] = EOT, pad
  return words.astype(np.int32)


def _unit(x) -> np.ndarray:
  x = x.detach().numpy()
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def _config(image: VitConfig | None = None, text: TextConfig | None = None, **more):
  image = image or VitConfig(8, 8, **TOWER)
  text = text or TextConfig(VOCAB, LENGTH, **TOWER)
  return DualEncoderConfig(image, text, more.pop('dim', DIM), **more)


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_clip_vision(activation):
  config = transformers.CLIPVisionConfig(
    **SIZES, hidden_act=activation, image_size=24, patch_size=8, projection_dim=DIM
  )
  theirs = transformers.CLIPVisionModelWithProjection(config)
  weights, root = Weights(theirs), 'vision_model'
  vit = VitConfig(
    24, 8, **TOWER, pool='cls', pre_norm=True, patch_bias=False, activation=activation, eps=1e-5
  )
  model = _model(
    _config(vit),
    weights.patches(f'{root}.embeddings.patch_embedding', bias=False),
    {
      'image/cls': weights.state[f'{root}.embeddings.class_embedding'],
      'image/position': weights.state[f'{root}.embeddings.position_embedding.weight'],
    },
    weights.norm('image/pre_norm', f'{root}.pre_layrnorm'),
    weights.blocks('image', f'{root}.encoder.layers'),
    weights.norm('image/norm', f'{root}.post_layernorm'),
    weights.linear('image_projection', 'visual_projection', bias=False),
  )
  images, pixels = _images(24)
  expected = _unit(theirs(pixels).image_embeds)
  np.testing.assert_allclose(
    tiny.call(model, 'encode_image', jnp.asarray(images)), expected, atol=1e-4
  )


@pytest.mark.parametrize('pad', [PAD, EOT])  # OpenAI's CLIP pads with the end token itself
@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_clip_text(activation, pad):
  config = transformers.CLIPTextConfig(
    **SIZES,
    hidden_act=activation,
    vocab_size=VOCAB,
    max_position_embeddings=LENGTH,
    projection_dim=DIM,
    eos_token_id=EOT,
    pad_token_id=pad,
  )
  theirs = transformers.CLIPTextModelWithProjection(config)
  weights, root = Weights(theirs), 'text_model'
  text = TextConfig(VOCAB, LENGTH, **TOWER, eot_id=EOT, pad_id=pad, activation=activation, eps=1e-5)
  model = _model(
    _config(text=text),
    {
      'text/token': weights.state[f'{root}.embeddings.token_embedding.weight'],
      'text/position': weights.state[f'{root}.embeddings.position_embedding.weight'],
    },
    weights.blocks('text', f'{root}.encoder.layers'),
    weights.norm('text/norm', f'{root}.final_layer_norm'),
    weights.linear('text_projection', 'text_projection', bias=False),
  )
  words = _words(pad, EOT)
  ours = tiny.call(model, 'encode_text', jnp.asarray(words))
  for mask in (None, torch.tensor(words != pad) if pad != EOT else None):
    with torch.no_grad():
      expected = _unit(theirs(torch.tensor(words).long(), attention_mask=mask).text_embeds)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(('activation', 'size'), [('gelu_tanh', 24), ('gelu', 24), ('gelu', 29)])
def test_siglip_vision(activation, size):
  config = transformers.SiglipVisionConfig(
    **SIZES,
    hidden_act='gelu_pytorch_tanh' if activation == 'gelu_tanh' else activation,
    image_size=size,
    patch_size=8,
  )
  theirs = transformers.SiglipVisionModel(config)
  weights = Weights(theirs)
  attention = {
    k.rpartition('.')[2]: v for k, v in weights.state.items() if 'head.attention.in' in k
  }
  kernel, bias = attention['in_proj_weight'].T, attention['in_proj_bias']
  # 29 pixels hold three patches of 8 and an edge that no patch sees, as 384 hold 27 of 14
  vit = VitConfig(size, 8, **TOWER, pool='map', activation=activation, drop_edge=bool(size % 8))
  model = _model(
    # SigLIP's image tower ends without a projection
    _config(vit, dim=WIDTH, image_projection=False),
    weights.patches('embeddings.patch_embedding', bias=True),
    {'image/position': weights.state['embeddings.position_embedding.weight']},
    weights.blocks('image', 'encoder.layers'),
    weights.norm('image/norm', 'post_layernorm'),
    {
      'image/head/probe': weights.state['head.probe'][0],
      'image/head/query/kernel': kernel[:, :WIDTH],
      'image/head/query/bias': bias[:WIDTH],
      'image/head/key_value/kernel': kernel[:, WIDTH:],
      'image/head/key_value/bias': bias[WIDTH:],
    },
    weights.linear('image/head/out', 'head.attention.out_proj'),
    weights.norm('image/head/norm', 'head.layernorm'),
    weights.linear('image/head/mlp/up', 'head.mlp.fc1'),
    weights.linear('image/head/mlp/down', 'head.mlp.fc2'),
  )
  images, pixels = _images(size)
  expected = _unit(theirs(pixels).pooler_output)
  np.testing.assert_allclose(
    tiny.call(model, 'encode_image', jnp.asarray(images)), expected, atol=1e-4
  )


@pytest.mark.parametrize('activation', ['gelu_tanh', 'gelu'])
def test_siglip_text(activation):
  config = transformers.SiglipTextConfig(
    **SIZES,
    hidden_act='gelu_pytorch_tanh' if activation == 'gelu_tanh' else activation,
    vocab_size=VOCAB,
    max_position_embeddings=LENGTH,
    projection_size=DIM,
  )
  theirs = transformers.SiglipTextModel(config)
  weights = Weights(theirs)
  text = TextConfig(
    VOCAB, LENGTH, **TOWER, causal=False, pool='last', pad_id=PAD, activation=activation
  )
  model = _model(
    _config(text=text, projection_bias=True),
    {
      'text/token': weights.state['embeddings.token_embedding.weight'],
      'text/position': weights.state['embeddings.position_embedding.weight'],
    },
    weights.blocks('text', 'encoder.layers'),
    weights.norm('text/norm', 'final_layer_norm'),
    weights.linear('text_projection', 'head'),
  )
  words = _words(PAD, EOT)
  # as SigLIP was trained: padded to the full length, the padding not masked
  expected = _unit(theirs(torch.tensor(words).long()).pooler_output)
  np.testing.assert_allclose(
    tiny.call(model, 'encode_text', jnp.asarray(words)), expected, atol=1e-4
  )


@pytest.mark.parametrize('new', [(7, 7), (12, 9), (3, 4)])
def test_position_interpolation_is_the_one_of_open_clip(new):
  table = np.random.default_rng(0).normal(size=(7, 7, 5)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.tensor(table).permute(2, 0, 1)[None],
    size=new,
    mode='bicubic',
    antialias=True,
    align_corners=False,
  )[0].permute(1, 2, 0)
  out = interpolate_positions(jnp.asarray(table.reshape(49, 5)), (7, 7), new)
  np.testing.assert_allclose(out, expected.reshape(-1, 5), atol=1e-5)
