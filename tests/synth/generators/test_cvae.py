import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data.tokenizer import train_tokenizer
from align_jax.errors import UserError
from align_jax.models.cvae import Cvae, CvaeConfig
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.synth.generators.cvae import (
  CvaeGenerator,
  CvaeGeneratorConfig,
  make_cvae_generator,
)
from align_jax.synth.generators.trained import TrainedModel
from align_jax.synth.rows import Generator
from align_jax.train.checkpoints import load_params
from align_jax.train.loop import train
from tests import tiny

CAPTIONS = ['a red apple', 'fish', 'two green frogs']
SEEDS = [0, 2**63 - 1, 2**40 + 3]
CONFIG = CvaeConfig(
  image_size=8,
  patch=4,
  width=16,
  heads=2,
  mlp_dim=16,
  encoder_depth=1,
  decoder_depth=1,
  latents=3,
  latent_dim=2,
  vocab_size=300,
  length=8,
)


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(CAPTIONS, 300)


@pytest.fixture(scope='module')
def skeleton():
  return Skeleton(lambda rngs: Cvae(CONFIG, rngs))


@pytest.fixture(scope='module')
def params(skeleton):
  """Random weights, those that start at zero as well: every input matters."""
  rng = np.random.default_rng(0)
  shapes = skeleton.shapes.items()
  return {n: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32) for n, s in shapes}


@pytest.fixture(scope='module')
def make(params, tokenizer):
  def made(changes=None, **settings):
    model = TrainedModel(CONFIG, {**params, **(changes or {})}, tokenizer, 8)
    return CvaeGenerator(model, CvaeGeneratorConfig(**settings))

  return made


@pytest.fixture(scope='module')
def generator(make):
  return make(batch_size=1)


def test_it_is_a_generator_over_all_devices(generator):
  assert isinstance(generator, Generator)
  assert generator.batch_size == 8 == len(jax.local_devices())  # one on each
  assert generator.generator_id == f'cvae:{generator.settings["weights"]}'


def test_an_image_depends_on_its_prompt_and_seed_to_the_last_bit(generator):
  whole = np.asarray(generator.generate(CAPTIONS, SEEDS))
  assert whole.shape == (3, 8, 8, 3) and whole.dtype == np.uint8
  np.testing.assert_array_equal(generator.generate(CAPTIONS[::-1], SEEDS[::-1]), whole[::-1])
  for i in range(3):
    np.testing.assert_array_equal(generator.generate([CAPTIONS[i]], [SEEDS[i]])[0], whole[i])
  many = generator.generate([*['fish'] * 9, *CAPTIONS], [*range(5, 14), *SEEDS])
  assert len(many) == 12  # two batches
  np.testing.assert_array_equal(many[9:], whole)


def test_both_halves_of_a_seed_and_the_caption_matter(generator):
  first = np.asarray(generator.generate(CAPTIONS, SEEDS))
  for prompts, seeds in (
    (CAPTIONS, [s ^ 1 for s in SEEDS]),
    (CAPTIONS, [s ^ (1 << 32) for s in SEEDS]),
    (['fish', 'a red apple', 'fish'], SEEDS),
  ):
    other = np.asarray(generator.generate(prompts, seeds))
    assert (first != other).any(axis=(1, 2, 3)).all()


def test_temperature_is_the_spread_of_the_prior(make, generator):
  zero = np.asarray(make(batch_size=1, temperature=0.0).generate(['fish'] * 3, SEEDS))
  assert (zero == zero[0]).all()
  spread = [
    np.std(np.asarray(g.generate(['fish'] * 8, range(8))).astype(float), axis=0).mean()
    for g in (make(batch_size=1, temperature=0.3), generator)
  ]
  assert 0 < spread[0] < spread[1]


def test_numbers_that_are_not_finite_give_no_image(make, params, tokenizer):
  rows = [set(row) for row in tokenizer.encode(CAPTIONS, 8).tolist()]
  own = max(rows[1] - rows[0] - rows[2])  # a token of the second caption alone
  token = params['text/token'].at[own].set(np.nan)
  got = make({'text/token': token}, batch_size=1).generate(CAPTIONS, SEEDS)
  assert [image is None for image in got] == [False, True, False]


def test_settings_name_the_weights(make, generator, params):
  other = make({'out/bias': params['out/bias'] + 1e-3}, batch_size=1)
  assert other.generator_id != generator.generator_id
  assert make(batch_size=16).settings == generator.settings  # the batch changes nothing


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'temperature': -1.0}, r'generator\.temperature'),
    ({'temperature': float('nan')}, r'generator\.temperature'),
    ({'batch_size': 0}, r'generator\.batch_size'),
    ({'name': ''}, r'generator\.name'),
  ],
)
def test_bad_settings_are_named(make, changes, named):
  with pytest.raises(UserError, match=named):
    make(**changes)


def test_a_foreign_tokenizer_is_refused(params, tokenizer):
  model = TrainedModel(CONFIG, params, tokenizer, 8)
  for changes, named in (({'pad_id': 7}, 'pads with 7'), ({'vocab_size': 999}, '999 tokens')):
    foreign = dataclasses.replace(tokenizer, **changes)
    with pytest.raises(UserError, match=named):
      CvaeGenerator(dataclasses.replace(model, tokenizer=foreign), CvaeGeneratorConfig())
  with pytest.raises(UserError, match='9 text tokens'):
    CvaeGenerator(dataclasses.replace(model, length=9), CvaeGeneratorConfig())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two steps, trained by the trainer itself."""
  folder = tmp_path_factory.mktemp('cvae')
  photos = tiny.photo_folder(folder / 'photos', each=2)
  values = {
    'steps': 2,
    'batch_size': 8,
    'objective': {'name': 'cvae'},
    'model': dataclasses.asdict(CONFIG) | {'length': 12},
    'optimizer': {'lr': 1e-3, 'warmup_steps': 1, 'ema': 0.9},
    'mesh': {'data': 2, 'fsdp': 4},
  }
  config = dataclasses.replace(tiny.config(f'folder:{photos}', **values), model=values['model'])
  train(config, make_objective(config.objective), folder / 'run')
  return folder / 'run'


def test_a_run_is_opened_with_its_average(run):
  generator = make_cvae_generator(CvaeGeneratorConfig(batch_size=1, temperature=0.0), str(run))
  image = generator.generate(['a photo of a red disc'], [3])[0]
  assert image.shape == (8, 8, 3)
  skeleton = Skeleton(lambda rngs: Cvae(dataclasses.replace(CONFIG, length=12), rngs))
  params = load_params(run, averaged=True)
  text = jnp.asarray(generator._tokenizer.encode(['a photo of a red disc'], 12))

  @jax.jit
  def draw(params):
    model = skeleton.bind(params)
    context = model.encode_text(text)
    return model.decode(model.prior_of(context).mean, context)

  expected = np.clip(127.5 * (np.asarray(draw(params))[0] + 1), 0, 255)
  np.testing.assert_allclose(image, expected, atol=0.51)


def test_what_is_no_run_of_it_is_named(run, tmp_path):
  with pytest.raises(UserError, match=r'config\.json'):
    make_cvae_generator(CvaeGeneratorConfig(), str(tmp_path))
  with pytest.raises(UserError, match='no checkpoint of step 99'):
    make_cvae_generator(CvaeGeneratorConfig(step=99), str(run))
  text = (run / 'config.json').read_text().replace('"name": "cvae"', '"name": "flow"')
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match=r"where: .* is a run of 'flow'"):
    make_cvae_generator(CvaeGeneratorConfig(), str(tmp_path), 'where')
