"""Random models of every architecture: PyTorch and ours agree from the same folder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from align_jax.api import load_text_embedder
from align_jax.data.tokenizer import load_tokenizer
from align_jax.losses.contrastive import symmetric_info_nce
from align_jax.models.flat import params_of
from tests.interop import tools

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = [  # width, depth, heads, mlp, image, patch
  (32, 2, 2, 64, 16, 8),
  (48, 3, 4, 80, 28, 14),
  (64, 1, 4, 128, 32, 8),
]


def tower(size, activation):
  width, depth, heads, mlp, *_ = size
  return {
    'hidden_size': width,
    'num_hidden_layers': depth,
    'num_attention_heads': heads,
    'intermediate_size': mlp,
    'hidden_act': activation,
  }


def vision(size, activation='quick_gelu'):
  return tower(size, activation) | {'image_size': size[4], 'patch_size': size[5]}


def text(size, activation='quick_gelu'):
  return tower(size, activation) | {
    'vocab_size': tools.VOCAB,
    'max_position_embeddings': tools.LENGTH,
    'pad_token_id': tools.PAD,
    'bos_token_id': 1,
    'eos_token_id': tools.EOT,
  }


def clip(size, activation='quick_gelu', dim=24, **more):
  config = transformers.CLIPConfig(
    text_config=text(size, activation) | more,
    vision_config=vision(size, activation),
    projection_dim=dim,
  )
  return tools.randomise(transformers.CLIPModel(config))


def siglip(size, activation='gelu_pytorch_tanh', **more):
  config = transformers.SiglipConfig(
    text_config=text(size, activation) | {'projection_size': size[0]} | more,
    vision_config=vision(size, activation),
  )
  return tools.randomise(transformers.SiglipModel(config))


def check_both(theirs, folder, size, mask=None):
  config, skeleton, params = tools.read(tools.save(theirs, folder))
  assert set(params) == set(skeleton.shapes)
  images, pixels = tools.pictures(size[4])
  words = tools.words()
  model = tools.bind(skeleton, params)
  tokens = torch.tensor(words).long()
  with torch.no_grad():
    out = theirs(
      input_ids=tokens, pixel_values=torch.tensor(pixels), attention_mask=mask,
      output_hidden_states=True,
    )  # fmt: skip
  image, text = model.encode_image(jnp.asarray(images)), model.encode_text(jnp.asarray(words))
  np.testing.assert_allclose(image, tools.unit(out.image_embeds), atol=1e-4)
  np.testing.assert_allclose(text, tools.unit(out.text_embeds), atol=1e-4)
  logits = model.scale * image @ text.T + (model.bias if config.init_bias is not None else 0)
  np.testing.assert_allclose(logits, out.logits_per_image.numpy(), rtol=1e-4, atol=1e-4)
  last = out.vision_model_output.hidden_states[-1]
  np.testing.assert_allclose(model.image.tokens(jnp.asarray(images)), last.numpy(), atol=1e-4)
  last = out.text_model_output.hidden_states[-1]
  # what stands at masked positions goes nowhere
  seen = np.ones(words.shape, bool) if mask is None else mask.numpy()
  hidden = np.asarray(model.text.hidden(jnp.asarray(words)))
  np.testing.assert_allclose(hidden[seen], last.numpy()[seen], atol=1e-4)


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
@pytest.mark.parametrize('size', SIZES)
def test_clip(tmp_path, size, activation):
  check_both(clip(size, activation), tmp_path, size)


def test_clip_with_an_attention_mask(tmp_path):
  mask = torch.tensor(tools.words() != tools.PAD)
  check_both(clip(SIZES[0]), tmp_path, SIZES[0], mask)


def test_clip_from_before_end_tokens_were_read(tmp_path):
  # OpenAI's own config.json: 2 stands for the highest id
  check_both(clip(SIZES[0], eos_token_id=2), tmp_path, SIZES[0])


@pytest.mark.parametrize('activation', ['gelu_pytorch_tanh', 'gelu'])
@pytest.mark.parametrize('size', SIZES)
def test_siglip(tmp_path, size, activation):
  check_both(siglip(size, activation), tmp_path, size)


@pytest.mark.parametrize('kind', ['CLIPVision', 'SiglipVision'])
def test_vision_tower_alone(tmp_path, kind):
  config = getattr(transformers, f'{kind}Config')(**vision(SIZES[1], 'gelu'))
  theirs = tools.randomise(getattr(transformers, f'{kind}Model')(config))
  _, skeleton, params = tools.read(tools.save(theirs, tmp_path))
  images, pixels = tools.pictures(28)
  with torch.no_grad():
    expected = theirs(torch.tensor(pixels)).pooler_output.numpy()
  np.testing.assert_allclose(
    tools.bind(skeleton, params).image(jnp.asarray(images)), expected, atol=1e-4
  )


def test_names_that_published_vision_towers_have(tmp_path):
  theirs = tools.randomise(
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision(SIZES[0])))
  )
  tools.save(theirs, tmp_path)
  path = tmp_path / 'model.safetensors'
  named = {f'vision_model.{k.removeprefix("vision_model.")}': v for k, v in load_file(path).items()}
  named['vision_model.embeddings.position_ids'] = np.arange(5, dtype=np.int64)[None]
  save_file(named, path)
  images, pixels = tools.pictures(16)
  _, skeleton, params = tools.read(tmp_path)
  with torch.no_grad():
    expected = theirs(torch.tensor(pixels)).pooler_output.numpy()
  np.testing.assert_allclose(
    tools.bind(skeleton, params).image(jnp.asarray(images)), expected, atol=1e-4
  )


@pytest.mark.parametrize('size', SIZES[:2])
def test_dinov2(tmp_path, size):
  width, depth, heads, *_ = size
  config = transformers.Dinov2Config(
    hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, mlp_ratio=3,
    image_size=size[4], patch_size=size[5],
  )  # fmt: skip
  theirs = tools.randomise(transformers.Dinov2Model(config))
  _, skeleton, params = tools.read(tools.save(theirs, tmp_path))
  images, pixels = tools.pictures(size[4])
  model = tools.bind(skeleton, params)
  with torch.no_grad():
    out = theirs(torch.tensor(pixels), output_hidden_states=True)
  np.testing.assert_allclose(model.image(jnp.asarray(images)), out.pooler_output.numpy(), atol=1e-4)
  np.testing.assert_allclose(
    model.image.tokens(jnp.asarray(images)), out.hidden_states[-1].numpy(), atol=1e-4
  )


@pytest.mark.parametrize('size', SIZES)
def test_bert(tmp_path, size):
  config = transformers.BertConfig(**text(size, 'gelu'))
  theirs = tools.randomise(transformers.BertModel(config))
  _, skeleton, params = tools.read(tools.save(theirs, tmp_path))
  words = tools.words()
  mask = words != tools.PAD
  model = tools.bind(skeleton, params)
  with torch.no_grad():
    out = theirs(torch.tensor(words).long(), attention_mask=torch.tensor(mask).long())
  expected = out.last_hidden_state.numpy()
  hidden = np.asarray(model.text.hidden(jnp.asarray(words)))
  np.testing.assert_allclose(hidden[mask], expected[mask], atol=1e-4)
  mean = (expected * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  np.testing.assert_allclose(model.text(jnp.asarray(words)), mean, atol=1e-4)


@pytest.mark.parametrize('make', [clip, siglip])
def test_gradients_of_the_contrastive_loss(tmp_path, make):
  size = SIZES[0]
  theirs = make(size)
  _, skeleton, params = tools.read(tools.save(theirs, tmp_path))
  images, pixels = tools.pictures(size[4], 4)
  words = tools.words(count=4)

  def loss(params):
    model = skeleton.bind(params)
    image, text = model.encode_image(jnp.asarray(images)), model.encode_text(jnp.asarray(words))
    return symmetric_info_nce(image, text, model.scale)

  gradients = jax.jit(jax.grad(loss))(params)
  out = theirs(input_ids=torch.tensor(words).long(), pixel_values=torch.tensor(pixels))
  scale = theirs.logit_scale.exp()
  logits = scale * out.image_embeds @ out.text_embeds.T
  target = torch.arange(4)
  cross = torch.nn.functional.cross_entropy
  value = (cross(logits, target) + cross(logits.T, target)) / 2
  np.testing.assert_allclose(loss(params), value.item(), rtol=1e-4)
  value.backward()
  # their gradients as a folder of weights, read by the same table
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
  _, _, expected = tools.read(tools.save(theirs, tmp_path / 'gradients'))
  for name, gradient in gradients.items():
    scale = float(np.linalg.norm(expected[name]))
    difference = float(np.linalg.norm(gradient - expected[name]))
    assert difference <= 1e-3 * scale + 1e-6, name


def test_positions_are_resized_for_another_resolution(tmp_path):
  from align_jax.interop.folder import load_folder, read_folder
  from align_jax.models.vit import interpolate_positions

  tools.save(clip(SIZES[0]), tmp_path)
  imported = read_folder(tmp_path)
  _, skeleton, params = tools.read(tmp_path)
  shapes = dict(skeleton.shapes)
  shapes['image/position'] = jax.ShapeDtypeStruct((1 + 9, 32), np.float32)
  out = load_folder(imported, shapes)['image/position']
  table = params['image/position']
  np.testing.assert_array_equal(out[0], table[0])
  np.testing.assert_allclose(out[1:], interpolate_positions(table[1:], (2, 2), (3, 3)), atol=1e-6)


def test_every_parameter_of_the_model_is_read(tmp_path):
  _, skeleton, params = tools.read(tools.save(siglip(SIZES[0]), tmp_path))
  assert {n: p.shape for n, p in params.items()} == {n: s.shape for n, s in skeleton.shapes.items()}
  assert set(params_of(tools.bind(skeleton, params))) == set(params)


def test_sentences_of_a_real_minilm_are_as_similar_as_pytorch_says():
  folder = tools.minilm()
  sentences = ['A cat sits on the mat.', 'The kitten rests on a rug.', 'Stock prices fell today.']
  config, skeleton, params = tools.read(folder)
  assert (config.text.pool, config.text.bert, config.text.width) == ('mean', True, 384)
  tokens = load_tokenizer(folder).encode(sentences, 16)
  ours = np.asarray(tools.bind(skeleton, params).text(jnp.asarray(tokens)))
  mask = tokens != 0
  theirs = transformers.BertModel.from_pretrained(str(folder)).eval()
  with torch.no_grad():
    out = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
  mean = (out.last_hidden_state.numpy() * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  ours, mean = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ours, mean))
  np.testing.assert_allclose(ours @ ours.T, mean @ mean.T, atol=1e-5)
  assert ours[0] @ ours[1] > 0.5 > ours[0] @ ours[2]
  embedded = load_text_embedder(f'hf:{folder}')(sentences)
  assert embedded.dtype == np.float32
  np.testing.assert_allclose(embedded, mean, atol=1e-4)


def test_open_clip_names_the_same_weights(tmp_path):
  """OpenCLIP's state, written out here from its own source's names, is the CLIP it came from."""
  size = SIZES[0]
  theirs = clip(size, 'gelu')
  state = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
  out = {'logit_scale': state['logit_scale']}
  for tower, root in (('vision_model', 'visual.'), ('text_model', '')):
    for layer in range(size[1]):
      old, new = f'{tower}.encoder.layers.{layer}', f'{root}transformer.resblocks.{layer}'
      for kind in ('weight', 'bias'):
        parts = [state[f'{old}.self_attn.{part}_proj.{kind}'] for part in 'qkv']
        out[f'{new}.attn.in_proj_{kind}'] = np.concatenate(parts)
        for a, b in [
          ('self_attn.out_proj', 'attn.out_proj'),
          ('layer_norm1', 'ln_1'),
          ('layer_norm2', 'ln_2'),
          ('mlp.fc1', 'mlp.c_fc'),
          ('mlp.fc2', 'mlp.c_proj'),
        ]:
          out[f'{new}.{b}.{kind}'] = state[f'{old}.{a}.{kind}']
  for a, b in [
    ('vision_model.embeddings.class_embedding', 'visual.class_embedding'),
    ('vision_model.embeddings.position_embedding.weight', 'visual.positional_embedding'),
    ('vision_model.embeddings.patch_embedding.weight', 'visual.conv1.weight'),
    ('text_model.embeddings.token_embedding.weight', 'token_embedding.weight'),
    ('text_model.embeddings.position_embedding.weight', 'positional_embedding'),
    *(
      (f'{a}.{kind}', f'{b}.{kind}')
      for kind in ('weight', 'bias')
      for a, b in [
        ('vision_model.pre_layrnorm', 'visual.ln_pre'),
        ('vision_model.post_layernorm', 'visual.ln_post'),
        ('text_model.final_layer_norm', 'ln_final'),
      ]
    ),
  ]:
    out[b] = state[a]
  out['visual.proj'] = state['visual_projection.weight'].T.copy()
  out['text_projection'] = state['text_projection.weight'].T.copy()
  save_file(out, tmp_path / 'open_clip_model.safetensors')
  width, depth, heads, mlp, image, patch = size
  ratio = mlp / width
  tower = {'width': width, 'layers': depth, 'mlp_ratio': ratio}
  config = {
    'embed_dim': 24,
    'vision_cfg': {**tower, 'image_size': image, 'patch_size': patch, 'head_width': width // heads},
    'text_cfg': {
      **tower, 'heads': heads, 'context_length': tools.LENGTH, 'vocab_size': tools.VOCAB
    },
  }  # fmt: skip
  (tmp_path / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config}))
  ours, _, params = tools.read(tmp_path)
  same, _, expected = tools.read(tools.save(theirs, tmp_path / 'hf'))
  assert ours.image == dataclasses.replace(same.image, mean=ours.image.mean, std=ours.image.std)
  assert ours.text.eot_id == tools.EOT
  assert params.keys() == expected.keys()
  assert all(np.array_equal(params[name], expected[name]) for name in params)
