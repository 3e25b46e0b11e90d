import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import build
from align_jax.interop.folder import load_folder, read_folder
from align_jax.models import generate
from align_jax.models.flat import Skeleton
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.models.stack import Execution

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

IMAGE = 98
CASES = {
  'clip_llama': ('clip', 'llama', {}, {}),
  'siglip_qwen2': ('siglip', 'qwen2', {}, {'vision_feature_layer': -1}),
  'clip_qwen2_tied': ('clip', 'qwen2', {'tie_word_embeddings': True}, {}),
  'siglip_llama3': (
    'siglip',
    'llama',
    {
      'head_dim': 10,
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 500.0,
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 64,
      },
    },
    {},
  ),
}


def save(name, folder):
  """A tiny random model, saved; returns it."""
  tower, decoder, text, llava = CASES[name]
  vision = {
    'hidden_size': 16,
    'intermediate_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'image_size': 16,
    'patch_size': 4,
  }
  words = {
    'vocab_size': IMAGE + 1,
    'hidden_size': 24,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'pad_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 2,
    **text,
  }
  kinds = {
    'clip': transformers.CLIPVisionConfig,
    'siglip': transformers.SiglipVisionConfig,
    'llama': transformers.LlamaConfig,
    'qwen2': transformers.Qwen2Config,
  }
  torch.manual_seed(0)
  config = transformers.LlavaConfig(
    vision_config=kinds[tower](**vision),
    text_config=kinds[decoder](**words),
    image_token_index=IMAGE,
    vision_feature_select_strategy='default' if tower == 'clip' else 'full',
    tie_word_embeddings=bool(text.get('tie_word_embeddings')),
    **llava,
  )
  model = transformers.LlavaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for part, p in model.named_parameters():  # large enough to tell things apart
      scale = 0.1 if 'embed_tokens' in part else 0.3 if p.ndim > 1 else 0.5
      p.copy_(torch.randn_like(p) * scale)
  model.tie_weights()
  model.save_pretrained(folder)
  return model


def load(folder):
  imported = read_folder(folder)
  config = build(MultimodalConfig, imported.model, 'config.model')
  skeleton = Skeleton(lambda rngs: Multimodal(config, rngs))
  params = {k: jnp.asarray(v) for k, v in load_folder(imported, skeleton.shapes).items()}
  assert set(params) == set(skeleton.shapes)
  return config, skeleton, params


@pytest.fixture(scope='module', params=CASES)
def both(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  return save(request.param, folder), *load(folder)


def example(rows=2, images=2, seed=0):
  """Texts with two images each, and their pixels as both sides take them."""
  rng = np.random.default_rng(seed)
  patch = [IMAGE] * 16
  tokens = np.stack(
    [
      np.concatenate([rng.integers(3, 90, 5), patch, rng.integers(3, 90, 4), patch, [7, 8, row]])
      for row in range(rows)
    ]
  ).astype(np.int32)
  return tokens, rng.integers(0, 256, (rows, images, 16, 16, 3), np.uint8)


def their_pixels(images, config):
  x = (images.reshape(-1, 16, 16, 3) / 255 - config.image.mean) / config.image.std
  return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


@pytest.mark.parametrize('scan', [False, True])
def test_logits_are_those_of_transformers(both, scan):
  theirs, config, skeleton, params = both
  tokens, images = example()
  with torch.no_grad():
    wanted = theirs(
      input_ids=torch.tensor(tokens, dtype=torch.long), pixel_values=their_pixels(images, config)
    ).logits.numpy()

  @jax.jit
  def logits(params, tokens, images):
    model = skeleton.bind(params, Execution(scan=scan))
    return model.decoder.logits(model(tokens, jnp.ones_like(tokens), images))

  np.testing.assert_allclose(logits(params, tokens, images), wanted, atol=1e-4, rtol=1e-4)


def prompts(seed=1):
  """Texts of three lengths, padded on the left; one image each."""
  rng = np.random.default_rng(seed)
  texts = [
    np.concatenate([rng.integers(3, 90, before), [IMAGE] * 16, rng.integers(3, 90, after)])
    for before, after in ((2, 3), (4, 9), (1, 1))
  ]
  longest = max(map(len, texts))
  tokens = np.zeros((3, longest), np.int32)
  segment = np.zeros((3, longest), np.int32)
  for row, text in enumerate(texts):
    tokens[row, longest - len(text) :] = text
    segment[row, longest - len(text) :] = 1
  return tokens, segment, rng.integers(0, 256, (3, 1, 16, 16, 3), np.uint8)


def theirs_generate(theirs, config, tokens, segment, images, **settings):
  with torch.no_grad():
    out = theirs.generate(
      input_ids=torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(segment, dtype=torch.long),
      pixel_values=their_pixels(images, config),
      do_sample=False,
      pad_token_id=0,
      eos_token_id=2,
      **settings,
    )
  out = out[:, tokens.shape[1] :].numpy()
  out = np.pad(out, ((0, 0), (0, settings['max_new_tokens'] - out.shape[1])))
  after = np.cumsum(out == 2, axis=1) - (out == 2) > 0  # their beams leave something there
  return np.where(after, 0, out)


def test_greedy_tokens_are_those_of_transformers(both):
  theirs, config, skeleton, params = both
  tokens, segment, images = prompts()
  wanted = theirs_generate(theirs, config, tokens, segment, images, max_new_tokens=64, num_beams=1)

  @jax.jit
  def run(params):
    prompt = generate.Prompt(jnp.asarray(tokens), jnp.asarray(segment), jnp.asarray(images))
    return generate.sample(
      skeleton.bind(params), prompt, jax.random.key(0), most=64, end_id=2, pad_id=0
    )

  np.testing.assert_array_equal(run(params), wanted)


@pytest.mark.parametrize('penalty', [1.0, 0.0])
def test_beams_are_those_of_transformers(both, penalty):
  theirs, config, skeleton, params = both
  tokens, segment, images = prompts(2)
  settings = {'max_new_tokens': 12, 'num_beams': 3, 'length_penalty': penalty}
  wanted = theirs_generate(theirs, config, tokens, segment, images, **settings)

  @jax.jit
  def run(params):
    prompt = generate.Prompt(jnp.asarray(tokens), jnp.asarray(segment), jnp.asarray(images))
    model = skeleton.bind(params)
    return generate.beam_search(
      model, prompt, beams=3, most=12, end_id=2, pad_id=0, length_penalty=penalty
    )[0]

  np.testing.assert_array_equal(run(params), wanted)
