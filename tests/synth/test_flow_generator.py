"""The flow as a generator: what an image depends on, devices, precision, latents, bad input."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data.tokenizer import train_tokenizer
from align_jax.errors import UserError
from align_jax.models.autoencoder import AutoencoderConfig
from align_jax.models.dit import Dit, DitConfig
from align_jax.models.flat import Skeleton
from align_jax.objectives import make_objective
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.synth.generators.flow import (
  FlowGenerator,
  FlowGeneratorConfig,
  make_flow_generator,
)
from align_jax.synth.generators.trained import TrainedModel, load_model
from align_jax.synth.rows import Generator
from align_jax.synth.sampler import (
  Solver,
  guided_velocity,
  make_draw,
  sample,
  seed_words,
  seeded_noise,
)
from align_jax.train.checkpoints import Checkpoints
from align_jax.train.plan import plan
from align_jax.train.run_config import write_run_config
from align_jax.train.state import create_state
from tests import tiny

PROMPTS = ['a red apple', 'fish', 'two green frogs', 'a bee']
SEEDS = [3, 2**40 + 3, 2**63 - 1, 0]
CONFIG = DitConfig(
  image_size=8,
  patch=4,
  width=16,
  depth=2,
  heads=2,
  mlp_dim=16,
  text_depth=1,
  vocab_size=300,
  length=8,
)
LATENT = AutoencoderConfig(widths=(8, 8), blocks=1, groups=4, latent_channels=4, scale=0.5)
DRAWS = FlowGeneratorConfig(steps=3, guidance=2.0, batch_size=1)


def random_params(config):
  """Random weights, those that start at zero as well: every input matters."""
  rng = np.random.default_rng(0)
  shapes = Skeleton(lambda rngs: Dit(config, rngs)).shapes.items()
  return {n: rng.normal(0, 0.3, s.shape).astype(np.float32) for n, s in shapes}


def make_model(config=CONFIG, **changes):
  model = TrainedModel(config, random_params(config), train_tokenizer(PROMPTS, 300), 8)
  return dataclasses.replace(model, **changes)


@pytest.fixture(scope='module')
def model():
  return make_model()


@pytest.fixture(scope='module')
def generator(model):
  return FlowGenerator(model, DRAWS)


def draw(model, devices, solver=Solver(3, 2.0), mesh=MeshConfig(), count=8, **options):
  """Images of `count` seeds on the first devices, of as many at a time as there are devices."""
  placed = make_mesh(mesh, jax.devices()[:devices])
  drawn = make_draw(model.config, solver, placed, **options)
  text = model.tokenizer.encode([PROMPTS[i % 4] for i in range(count)], model.length)
  words = seed_words(range(count))
  parts = [slice(start, start + devices) for start in range(0, count, devices)]
  return np.concatenate([np.asarray(drawn(model.params, text[p], words[p])[0]) for p in parts])


def test_it_is_a_generator_whose_settings_say_all(model, generator):
  assert isinstance(generator, Generator)
  assert generator.batch_size == 8  # one on each of eight devices
  name, _, digest = generator.generator_id.partition(':')
  assert name == 'dit-rf' and len(digest) == 12
  assert generator.settings == {
    'weights': digest,
    'steps': 3,
    'guidance': 2.0,
    'method': 'euler',
    'dtype': 'float32',
    'image_size': 8,
    'text_length': 8,
    'noise': 'threefry2x32',
  }
  other = make_model(params={**model.params, 'out/bias': model.params['out/bias'] + 1e-3})
  named = dataclasses.replace(DRAWS, name='other')
  assert FlowGenerator(other, named).generator_id.startswith('other:')
  assert FlowGenerator(other, named).settings['weights'] != digest


def test_prompt_and_seed_alone_decide_an_image(generator):
  whole = generator.generate(PROMPTS, SEEDS)
  assert [image.shape for image in whole] == [(8, 8, 3)] * 4 and whole[0].dtype == np.uint8
  alone = [generator.generate([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
  np.testing.assert_array_equal(whole, alone)
  many = generator.generate(PROMPTS[::-1] * 3, SEEDS[::-1] * 3)  # more than a batch
  np.testing.assert_array_equal(many, [*whole[::-1]] * 3)
  for prompts, seeds in (
    (PROMPTS[1:] + PROMPTS[:1], SEEDS),
    (PROMPTS, [4, 3, 2**63 - 2, 2**32]),  # the high and the low half of a seed both matter
  ):
    other = generator.generate(prompts, seeds)
    assert all((a != b).any() for a, b in zip(whole, other, strict=True))
  assert generator.generate([], []) == []


def test_noise_of_a_seed_is_that_of_a_64_bit_key():
  seeds = [5, 2**33 + 5]
  got = seeded_noise(jnp.asarray(seed_words(seeds)), (4, 3))
  with jax.enable_x64(True):
    keys = [jax.random.key(seed, impl='threefry2x32') for seed in seeds]
    expected = [jax.random.normal(key, (4, 3), np.float32) for key in keys]
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('method', ['euler', 'heun'])
def test_an_image_is_that_of_the_plain_solver(model, method):
  skeleton = Skeleton(lambda rngs: Dit(CONFIG, rngs))
  text = jnp.asarray(model.tokenizer.encode(PROMPTS[:1], 8))

  @jax.jit
  def alone(params):
    noise = seeded_noise(jnp.asarray(seed_words(SEEDS[:1])), (8, 8, 3))
    return sample(skeleton.bind(params), text, noise, steps=3, guidance=2.0, method=method)[0]

  drawn = FlowGenerator(model, dataclasses.replace(DRAWS, method=method))
  image = drawn.generate(PROMPTS[:1], SEEDS[:1])[0]
  np.testing.assert_array_equal(image, alone(model.params)[0])


def test_an_image_does_not_depend_on_the_number_of_devices(model):
  one = draw(model, 1)
  np.testing.assert_array_equal(one, draw(model, 2))
  np.testing.assert_array_equal(one, draw(model, 8))
  # parameters in shards, gathered block by block
  split = draw(model, 8, mesh=MeshConfig(data=2, fsdp=4))
  np.testing.assert_array_equal(one, split)
  # heads and hidden units over devices: sums in another order
  tensor = draw(model, 2, mesh=MeshConfig(data=1, tensor=2), count=2)
  np.testing.assert_allclose(tensor.astype(int), one[:2].astype(int), atol=1)


def test_a_sharded_velocity_is_that_of_one_device(model):
  """Before pixels are rounded: to 1e-5."""
  skeleton = Skeleton(lambda rngs: Dit(CONFIG, rngs))
  text = jnp.asarray(model.tokenizer.encode(PROMPTS * 2, 8))
  noise = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))

  def velocity(params, text, x):
    return guided_velocity(skeleton.bind(params), text, 2.0)(x, jnp.float32(0.7))

  rows = jax.sharding.PartitionSpec('data')
  mesh = make_mesh(MeshConfig(), jax.devices())
  whole = jax.sharding.PartitionSpec()
  specs = {'in_specs': (whole, rows, rows), 'out_specs': rows}
  split = jax.jit(jax.shard_map(velocity, mesh=mesh, **specs))(model.params, text, noise)
  alone = jax.jit(velocity)(model.params, text, noise)
  np.testing.assert_allclose(split, alone, rtol=1e-5, atol=1e-5)


def test_one_loop_over_the_blocks_draws_the_same(model):
  scanned = draw(model, 1, scan=True).astype(int)
  np.testing.assert_allclose(scanned, draw(model, 1).astype(int), atol=1)


def test_bfloat16_is_near_and_parameters_stay_float32(model, generator):
  half = FlowGenerator(model, dataclasses.replace(DRAWS, dtype='bfloat16'))
  assert half.settings['dtype'] == 'bfloat16'
  assert {p.dtype for p in half._params.values()} == {jnp.dtype('float32')}
  full = np.asarray(generator.generate(PROMPTS, SEEDS)).astype(int)
  got = np.asarray(half.generate(PROMPTS, SEEDS)).astype(int)
  assert (got != full).any() and np.abs(got - full).mean() < 3


def test_an_image_that_is_not_finite_is_none_and_spares_its_neighbours(model, generator):
  rows = [set(row) for row in model.tokenizer.encode(PROMPTS, 8).tolist()]
  own = max(rows[1] - rows[0] - rows[2] - rows[3])  # a token of the second prompt alone
  token = model.params['text/token'].copy()
  token[own] = np.nan
  broken = FlowGenerator(make_model(params={**model.params, 'text/token': token}), DRAWS)
  got, good = broken.generate(PROMPTS, SEEDS), generator.generate(PROMPTS, SEEDS)
  assert got[1] is None
  for index in (0, 2, 3):
    np.testing.assert_array_equal(got[index], good[index])


def test_latents_are_drawn_and_decoded():
  config = dataclasses.replace(CONFIG, image_size=16, patch=2, autoencoder=LATENT)
  model = make_model(config)
  generator = FlowGenerator(model, DRAWS)
  image = generator.generate(PROMPTS[:1], SEEDS[:1])[0]
  assert image.shape == (16, 16, 3)
  skeleton = Skeleton(lambda rngs: Dit(config, rngs))
  text = jnp.asarray(model.tokenizer.encode(PROMPTS[:1], 8))

  @jax.jit
  def alone(params):
    bound = skeleton.bind(params)
    x = seeded_noise(jnp.asarray(seed_words(SEEDS[:1])), (8, 8, 4))
    for time in (1.0, 2 / 3, 1 / 3):
      x = x - guided_velocity(bound, text, 2.0)(x, jnp.float32(time)) / 3
    return bound.autoencoder.decode(x / 0.5)

  expected = np.round(127.5 * (np.clip(alone(model.params)[0], -1, 1) + 1))
  np.testing.assert_allclose(image.astype(int), expected, atol=1)


def test_forwards_and_flops_of_an_image():
  assert Solver(10, 1.0, 'euler').evaluations == 10
  assert Solver(10, 3.0, 'euler').evaluations == 20
  assert Solver(10, 3.0, 'heun').evaluations == 38
  flops = Solver(10, 3.0).flops(CONFIG)
  assert flops == 20 * CONFIG.velocity_flops + 2 * CONFIG.text_flops
  latent = dataclasses.replace(CONFIG, image_size=16, patch=4, autoencoder=LATENT)
  assert Solver(1, 1.0).flops(latent) == latent.flops + LATENT.decode_flops(16)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run folder as training leaves it, and its moving average."""
  small = {**tiny.DIT, 'width': 16, 'depth': 1, 'mlp_dim': 16}
  changes = {'objective': tiny.FLOW, 'optimizer': {'ema': 0.5}}
  config = dataclasses.replace(tiny.config('folder:x', **changes), model=small)
  objective = make_objective(config.objective)
  planned = plan(config, objective, jax.devices()[:1])
  state = create_state(
    planned.skeleton,
    objective,
    planned.optimizer,
    key=jax.random.key(0),
    mesh=planned.mesh,
    rules=config.mesh.rules,
    ema=True,
  )
  averages = {name: np.asarray(value) + 0.01 for name, value in state.learn.items()}
  folder = tmp_path_factory.mktemp('run')
  write_run_config(config, folder)
  train_tokenizer(PROMPTS, 300).save(folder / 'tokenizer')
  with contextlib.closing(Checkpoints(folder)) as checkpoints:
    checkpoints.save(dataclasses.replace(state, average=jax.device_put(averages)), {})
  return folder, averages


def test_a_training_run_becomes_a_generator(run):
  folder, averages = run
  generator = make_flow_generator(DRAWS, str(folder))
  assert generator.generate(['a red disc'], [7])[0].shape == (32, 32, 3)
  model = load_model(str(folder), 'flow', DitConfig)
  np.testing.assert_array_equal(model.params['out/bias'], averages['out/bias'])
  plain = load_model(str(folder), 'flow', DitConfig, averaged=False)
  assert (plain.params['out/bias'] != averages['out/bias']).any()
  assert make_flow_generator(DRAWS, model).generator_id == generator.generator_id
  with pytest.raises(UserError, match='no checkpoint of step 9'):
    make_flow_generator(dataclasses.replace(DRAWS, step=9), str(folder))


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'steps': 0}, 'config.x.steps'),
    ({'guidance': float('nan')}, 'config.x.guidance'),
    ({'batch_size': 0}, 'config.x.batch_size'),
    ({'name': ''}, 'config.x.name'),
    ({'mesh': MeshConfig(data=3)}, 'config.mesh'),
  ],
)
def test_bad_settings_are_named(model, changes, named):
  with pytest.raises(UserError, match=named):
    make_flow_generator(dataclasses.replace(DRAWS, **changes), model, 'config.x')


def test_bad_inputs_are_named(tmp_path, model, generator):
  with pytest.raises(UserError, match='2 prompts, but 1 seeds'):
    generator.generate(PROMPTS[:2], [1])
  with pytest.raises(UserError, match='seed -1'):
    generator.generate(PROMPTS[:1], [-1])
  with pytest.raises(UserError, match=r'config.json'):
    make_flow_generator(DRAWS, str(tmp_path))
  write_run_config(tiny.config('folder:x'), tmp_path)
  with pytest.raises(UserError, match="run of 'contrastive'"):
    make_flow_generator(DRAWS, str(tmp_path))
  foreign = dataclasses.replace(model.tokenizer, pad_id=7)
  with pytest.raises(UserError, match=r'config\.x: the tokenizer pads with 7'):
    make_flow_generator(DRAWS, make_model(tokenizer=foreign), 'config.x')
