import json
import shutil
import sys

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.synth.generators.diffusers import (
  DiffusersConfig,
  DiffusersGenerator,
  folder_digest,
)
from align_jax.synth.rows import Generator

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
pipelines = pytest.importorskip('tests.synth.generators.pipelines')

PROMPTS = ['a red apple', 'fish', 'two green frogs']
SEEDS = [0, 2**63 - 1, 7]


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  """The pipelines are tiny: more threads would only wait for each other."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('pipelines')
  return {
    'sd': pipelines.stable_diffusion(root / 'sd'),
    'if1': pipelines.deepfloyd(root / 'if1'),
    'if2': pipelines.deepfloyd_upscaler(root / 'if2'),
  }


def make(folder, **changes):
  settings = {'steps': 2, 'guidance': 3.0, 'upscaler_steps': 2, 'device': 'cpu', **changes}
  return DiffusersGenerator(DiffusersConfig(str(folder), **settings), 'config.generators[0]')


@pytest.fixture(scope='module')
def stable(folders):
  return make(folders['sd'], size=32)


@pytest.fixture(scope='module')
def cascade(folders):
  return make(folders['if1'], upscalers=(str(folders['if2']),))


def near(got, expected):
  """Another size of batch may round another way."""
  assert np.abs(np.asarray(got).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_stable_diffusion_is_the_pipeline_itself(folders, stable):
  assert isinstance(stable, Generator)
  whole = np.asarray(stable.generate(PROMPTS, SEEDS))
  assert whole.shape == (3, 32, 32, 3) and whole.dtype == np.uint8 and whole.std() > 1
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(folders['sd'], safety_checker=None)
  for prompt, seed, image in zip(PROMPTS, SEEDS, whole, strict=True):
    expected = pipe(
      prompt,
      num_inference_steps=2,
      guidance_scale=3.0,
      height=32,
      width=32,
      generator=torch.Generator().manual_seed(seed),
    ).images[0]
    near(image, np.asarray(expected))


@pytest.mark.parametrize('kind', ['stable', 'cascade'])
def test_an_image_does_not_depend_on_its_batch(kind, request):
  generator = request.getfixturevalue(kind)
  whole = generator.generate(PROMPTS, SEEDS)
  near(generator.generate(PROMPTS[1:2], SEEDS[1:2]), whole[1:2])
  # in two batches, in another order; and another prompt, another seed
  prompts = ['fish', *PROMPTS[::-1], PROMPTS[0]]
  *again, other = generator.generate(prompts, [3, *SEEDS[::-1], 2])
  near(again[1:], whole[::-1])
  assert (again[0] != whole[1]).any() and (other != whole[0]).any()


def test_a_cascade_is_its_stages_one_after_another(folders, cascade):
  image = cascade.generate(PROMPTS[:1], [5])[0]
  assert image.shape == (32, 32, 3) and image.std() > 1
  first = diffusers.IFPipeline.from_pretrained(folders['if1'], watermarker=None)
  second = diffusers.IFSuperResolutionPipeline.from_pretrained(
    folders['if2'], text_encoder=None, watermarker=None
  )
  positive, negative = first.encode_prompt(PROMPTS[:1])
  text = {'prompt_embeds': positive, 'negative_prompt_embeds': negative}
  generator = torch.Generator().manual_seed(5)
  small = first(
    **text, generator=generator, num_inference_steps=2, guidance_scale=3.0, output_type='pt'
  ).images
  large = second(
    **text, image=small, generator=generator, num_inference_steps=2, output_type='np'
  ).images
  near(image, np.round(255 * large[0]).astype(np.uint8))
  # without a text encoder of its own, and without a watermark
  assert cascade._stages[1].text_encoder is None and cascade._stages[1].watermarker is None


def test_deepfloyd_alone_and_after_stable_diffusion(folders):
  alone = make(folders['if1']).generate(PROMPTS[:1], [1])[0]
  assert alone.shape == (16, 16, 3)
  mixed = make(folders['sd'], size=16, upscalers=(str(folders['if2']),))
  assert mixed.generate(PROMPTS[:1], [1])[0].shape == (32, 32, 3)


def test_guidance_and_what_not_to_draw_matter(folders, stable):
  base = stable.generate(PROMPTS[:1], [1])[0]
  for changes in ({'guidance': 9.0}, {'negative_prompt': 'ugly fish'}, {'steps': 3}):
    other = make(folders['sd'], size=32, **changes)
    assert other.settings != stable.settings
    assert (other.generate(PROMPTS[:1], [1])[0] != base).any(), changes


def test_numbers_that_are_not_finite_give_no_image(folders, tmp_path):
  generator = make(folders['sd'], size=32)
  encode = generator._stages[0].text_encoder
  token = generator._stages[0].tokenizer('fish').input_ids[1]
  with torch.no_grad():
    encode.get_input_embeddings().weight[token] = float('nan')
  got = generator.generate(PROMPTS, SEEDS)
  assert [image is None for image in got] == [False, True, False]


def test_the_safety_checker_runs_if_asked_for(folders, stable):
  assert stable._stages[0].safety_checker is None
  checked = make(folders['sd'], size=32, safety_checker=True)
  checker = checked._stages[0].safety_checker
  with torch.no_grad():
    checker.concept_embeds_weights.fill_(2.0)  # no cosine is as large: all is well
  assert checked.generate(['fish'], [1])[0] is not None
  with torch.no_grad():
    checker.concept_embeds_weights.fill_(-2.0)
  assert checked.generate(['fish'], [1]) == [None]


def test_the_id_tells_versions_and_weights(folders, stable, cascade, tmp_path):
  assert stable.generator_id == (
    f'StableDiffusionPipeline@{diffusers.__version__}:{folder_digest(str(folders["sd"]))}'
  )
  assert cascade.generator_id.startswith('IFPipeline+IFSuperResolutionPipeline@')
  copy = shutil.copytree(folders['sd'], tmp_path / 'sd')
  assert folder_digest(str(copy)) == folder_digest(str(folders['sd']))
  weights = next(copy.glob('unet/*.safetensors'))
  data = bytearray(weights.read_bytes())
  data[-1] ^= 1
  weights.write_bytes(data)
  assert folder_digest(str(copy)) != folder_digest(str(folders['sd']))


def test_bfloat16(folders):
  image = make(folders['sd'], size=32, dtype='bfloat16').generate(['fish'], [1])[0]
  assert image.dtype == np.uint8 and image.std() > 1


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'steps': 0}, 'steps'),
    ({'guidance': float('nan')}, 'guidance'),
    ({'batch_size': 0}, 'batch_size'),
    ({'size': -1}, 'size'),
    ({'folder': ''}, 'folder'),
  ],
)
def test_bad_settings_are_named(changes, named):
  with pytest.raises(UserError, match=rf'config\.generators\[2\]\.{named}: '):
    DiffusersConfig(**{'folder': 'x', **changes}).check('config.generators[2]')


def test_a_size_that_the_pipeline_refuses(folders):
  with pytest.raises(UserError, match=r'StableDiffusionPipeline refuses: .*divisible by 8'):
    make(folders['sd'], size=33).generate(['fish'], [1])


def test_folders_that_are_no_pipeline_are_named(folders, tmp_path):
  with pytest.raises(UserError, match=r'generators\[0\]\.folder: no model_index\.json'):
    make(tmp_path)
  with pytest.raises(UserError, match=r'generators\[0\]\.upscalers\[0\]: .*makes an image larger'):
    make(folders['if1'], upscalers=(str(folders['sd']),))
  with pytest.raises(UserError, match=r'folder: IFSuperResolutionPipeline .*draws from text alone'):
    make(folders['if2'])
  for name, problem in (('NoSuchPipeline', 'is no pipeline'), (['own', 'Own'], 'is not run')):
    (tmp_path / 'model_index.json').write_text(json.dumps({'_class_name': name}))
    with pytest.raises(UserError, match=problem):
      make(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
  folder = pipelines.stable_diffusion(tmp_path / 'sd', safe_serialization=False)
  with pytest.raises(UserError, match=r'cannot be loaded as StableDiffusionPipeline .*safetensors'):
    make(folder)


def test_code_of_a_component_is_not_run(folders, tmp_path):
  copy = shutil.copytree(folders['sd'], tmp_path / 'sd')
  ran = tmp_path / 'ran'
  (copy / 'scheduler' / 'own.py').write_text(f'open({str(ran)!r}, "w")\nclass Own: pass\n')
  index = json.loads((copy / 'model_index.json').read_text())
  index['scheduler'] = ['own', 'Own']
  (copy / 'model_index.json').write_text(json.dumps(index))
  with pytest.raises(UserError, match='cannot be loaded'):
    make(copy)
  assert not ran.exists()


def test_missing_packages_are_named(folders, monkeypatch):
  monkeypatch.setitem(sys.modules, 'diffusers', None)
  with pytest.raises(UserError, match=r'pip install align_jax\[diffusers\]'):
    make(folders['sd'])
