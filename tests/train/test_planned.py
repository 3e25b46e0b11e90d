"""Runs of embedders, and runs by batch plans: resumed bit for bit, mined anew, refused."""

import dataclasses
import functools
import hashlib
import threading

import numpy as np
import pytest

from align_jax.data.fingerprint import fingerprint
from align_jax.data.pair_sources import open_pairs
from align_jax.data.sources import record_ids
from align_jax.embedder import load_content_embedder
from align_jax.errors import UserError
from align_jax.miner import make_miner
from align_jax.mining.hardness import measure
from align_jax.mining.pairs import Pairs
from align_jax.mining.plan import load_plan, make_plan, save_plan
from align_jax.mining.strategy import Mined
from align_jax.objectives import make_objective
from align_jax.train import loop
from align_jax.train.checkpoints import load_params
from align_jax.train.config import RemineConfig
from align_jax.train.init import make_config
from align_jax.train.loop import train
from align_jax.train.metrics import read_metrics
from align_jax.train.remine import Remining, Stopped
from tests import tiny

pytest.importorskip('resvg_py')

TASKS = 'emojitasks:classification,image_to_caption?size=32&concepts=12&max_objects=1&count=24'
SCENES = 'emoji:scenes?size=32&concepts=12&max_objects=1&count=48&captions=short'
MODEL = {
  **tiny.EMBEDDER,
  'image': {**tiny.EMBEDDER['image'], 'depth': 1},
  'decoder': {**tiny.EMBEDDER['decoder'], 'depth': 1},
  'length': 80,
}


def plan_of(source, seed, size=4):
  """Clusters by lot."""
  ids = record_ids(source)
  clusters = np.random.default_rng(seed).permutation(len(ids)).reshape(-1, size)
  vectors = np.eye(len(ids), dtype=np.float32)
  pairs = Pairs(vectors, vectors, np.arange(len(ids)), np.arange(len(ids)))
  mined = Mined('random', {'seed': seed}, clusters, {}, measure(clusters, pairs))
  return make_plan(mined, ids, source.spec, fingerprint(source))


def mine(params, stop=lambda: False):
  """A plan that depends on every weight, as real mining does."""
  digest = hashlib.sha256()
  for name in sorted(params):
    digest.update(np.asarray(params[name]).tobytes())
  return plan_of(open_pairs(TASKS), int(digest.hexdigest()[:8], 16))


def config_of(**changes):
  data = {'text': 'pairs', 'length': 80, 'level': 'user', 'vocab_size': 300}
  values = {
    'steps': 6,
    'batch_size': 8,
    'objective': tiny.SAHA,
    'model': MODEL,
    **changes,
    'data': {**data, **changes.get('data', {})},
  }
  model = values.pop('model')
  return make_config({**tiny.config_values(TASKS, **values), 'model': model})


def run(folder, mine=None, **changes):
  config = config_of(**changes)
  return train(config, make_objective(config.objective), folder, mine=mine)


def equal(a, b):
  return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_an_embedder_mines_anew_by_its_own_prompts(tmp_path):
  remine = {'every': 2, 'lag': 1, 'k': 3, 'settings': {'bad': 'skip'}}
  given = {'steps': 4, 'remine': remine}
  config = config_of(**given)
  miner = make_miner(config, tmp_path)
  run(tmp_path, miner, **given)
  plans = [load_plan(tmp_path / 'plans' / f'{step}.jsonl.gz') for step in (0, 2)]
  assert all(plan.strategy == 'saha_mutual' and plan.size == 4 for plan in plans)
  # what it mines by are its weights and its level of the prompt
  again = miner(load_params(tmp_path, averaged=True), lambda: False)
  other = make_miner(config_of(**given, data={'level': 'none'}), tmp_path)
  assert other(load_params(tmp_path, averaged=True), lambda: False).clusters != again.clusters


class Cut(Exception):
  """Ends a run in the middle."""


def cut_off(monkeypatch, folder, after, mine=None, **changes):
  real_put, steps = loop.put_batch, 0

  def put(batch, mesh):
    nonlocal steps
    steps += 1
    if steps > after:
      raise Cut
    return real_put(batch, mesh)

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'put_batch', put)
    with pytest.raises(Cut):
      run(folder, mine, **changes)


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
  path = tmp_path_factory.mktemp('plan') / 'train.plan'
  save_plan(path, plan_of(open_pairs(TASKS), 0))
  save_plan(path.with_suffix('.wide'), plan_of(open_pairs(TASKS), 0, 16))
  return str(path)


@pytest.fixture(scope='module')
def base(tmp_path_factory, plan):
  """A run of an embedder by a plan."""
  folder = tmp_path_factory.mktemp('planned')
  run(folder, data={'plan': plan})
  return folder


def test_a_run_by_a_plan_goes_on_bit_for_bit_and_embeds(base, plan, tmp_path, monkeypatch):
  cut_off(monkeypatch, tmp_path, 3, data={'plan': plan})
  assert equal(run(tmp_path, data={'plan': plan}), load_params(base))
  lines = [line for line in read_metrics(base) if 'positive_cosine' in line]
  assert lines
  embed = load_content_embedder(base, 'user')
  pair = open_pairs(TASKS)[0]
  assert embed([pair.query], 'query', pair.instruction).shape == (1, 32)


def test_the_plan_decides_what_comes_together(base, tmp_path):
  other = tmp_path / 'other.plan'
  save_plan(other, plan_of(open_pairs(TASKS), 1))
  assert not equal(run(tmp_path / 'run', data={'plan': str(other)}), load_params(base))


def test_adapters_start_on_a_run_without(tmp_path):
  scenes = {'real': SCENES, 'text': 'questions'}
  plain = {**MODEL, 'decoder': {**MODEL['decoder'], 'lora': None}}
  first = run(tmp_path / 'a', objective=tiny.CAPTION, model=plain, data=scenes)
  model = {**MODEL, 'init': f'run:{tmp_path / "a"}'}
  after = run(tmp_path / 'b', model=model)
  added = set(after) - set(first)
  assert added and all('lora' in name for name in added)
  assert all(np.array_equal(after[name], first[name]) for name in first)
  assert any(np.abs(after[name]).max() > 0 for name in added if name.endswith('lora/b'))
  here, there = (tmp_path / run / 'tokenizer' / 'tokenizer.json' for run in 'ab')
  assert here.read_bytes() == there.read_bytes()


def test_mined_anew_and_cut_off_ends_as_if_it_never_was(tmp_path, monkeypatch):
  changes = {'steps': 8, 'remine': {'every': 3, 'lag': 2, 'k': 3}}
  whole = run(tmp_path / 'whole', mine, **changes)
  plans = tmp_path / 'whole' / 'plans'
  assert sorted(p.stem.split('.')[0] for p in plans.iterdir()) == ['0', '3', '6']
  assert load_plan(plans / '3.jsonl.gz') != load_plan(plans / '0.jsonl.gz')
  cut_off(monkeypatch, tmp_path / 'cut', 5, mine, **changes)
  assert equal(run(tmp_path / 'cut', mine, **changes), whole)
  assert equal(run(tmp_path / 'cut', mine, **changes), whole)  # there is nothing left to do
  with pytest.raises(UserError, match=r'config\.remine\.lag: 1, but the run'):
    run(tmp_path / 'cut', mine, **{**changes, 'remine': {**changes['remine'], 'lag': 1}})


@functools.cache
def drawn(seed):
  return plan_of(open_pairs(TASKS), seed)


def params_of(step):
  return {'a': np.full(2, step, np.float32)}


def simulate(folder, steps, lag, *, begin=0, slow=False, planned=False):
  """Which plan each batch is drawn by; as `train` calls it, with a checkpoint after each step."""
  release = threading.Event()

  def mine(params, stop):
    while slow and not release.wait(0.01):
      if stop():
        raise Stopped
    return drawn(int(params['a'][0]))

  remining = Remining(RemineConfig(every=3, lag=lag), folder, mine, planned=planned)
  if begin == 0:
    release.set()  # the first one is waited for
  plan = remining.begin(begin, params_of(begin))
  used = [] if begin == 0 else [plan]
  release.clear()
  for step in range(begin + 1, steps + 1):
    if (step - 1 - lag) % 3 == 0:
      release.set()  # it is waited for here
    plan = remining.before(step, params_of(step - 1)) or plan
    release.clear()
    used.append(plan)
    remining.keep()
  remining.close()
  return [plan and plan.settings['seed'] for plan in used]


@pytest.mark.parametrize('lag', [0, 1, 2])
@pytest.mark.parametrize('slow', [False, True])
def test_plans_are_of_the_same_steps_wherever_a_run_goes_on(lag, slow, tmp_path):
  wanted = [max(0, (batch - 1 - lag) // 3 * 3) for batch in range(1, 11)]
  assert simulate(tmp_path / 'whole', 10, lag, slow=slow) == wanted
  for cut in range(1, 10):
    folder = tmp_path / str(cut)
    assert simulate(folder, cut, lag, slow=slow) == wanted[:cut]
    assert simulate(folder, 10, lag, begin=cut, slow=slow) == wanted[cut - 1 :]
    # the last one may be under way still
    left = {path.name for path in (folder / 'plans').glob('*.safetensors')}
    assert left <= {'9.safetensors'}


def test_a_given_plan_is_used_until_the_first_mining(tmp_path):
  assert simulate(tmp_path, 8, 1, planned=True) == [None] * 4 + [3, 3, 3, 6]
  assert simulate(tmp_path, 8, 1, begin=4, planned=True) == [None, 3, 3, 3, 6]


def test_mining_anew_may_begin_with_a_given_plan(plan, tmp_path, base):
  changes = {'data': {'plan': plan}, 'remine': {'every': 4, 'k': 3}}
  assert not equal(run(tmp_path, mine, **changes), load_params(base))
  assert [path.name for path in (tmp_path / 'plans').iterdir()] == ['4.jsonl.gz']


def test_a_plan_that_is_gone_is_asked_for(tmp_path, monkeypatch):
  changes = {'steps': 8, 'remine': {'every': 3, 'k': 3}}
  cut_off(monkeypatch, tmp_path, 7, mine, **changes)
  (tmp_path / 'plans' / '3.jsonl.gz').unlink()
  with pytest.raises(UserError, match=r'3\.jsonl\.gz.*; the checkpoint needs it'):
    run(tmp_path, mine, **changes)


def test_dual_encoders_follow_plans_of_records(tmp_path, monkeypatch):
  path = tmp_path / 'records.plan'
  save_plan(path, plan_of(open_pairs(f'{SCENES}&pairs=image_to_caption'), 0))
  data = {'real': SCENES, 'text': 'plain', 'plan': str(path), 'length': 12}
  changes = {'objective': tiny.CONTRASTIVE, 'model': tiny.SMALL_MODEL, 'data': data}
  whole = run(tmp_path / 'whole', **changes)
  cut_off(monkeypatch, tmp_path / 'cut', 3, **changes)
  assert equal(run(tmp_path / 'cut', **changes), whole)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data': {'text': 'questions'}}, r"config\.data\.text: 'questions', but .* reads 'pairs'"),
    ({'data': {'generated': SCENES}}, r'config\.data\.generated: pairs are of one source'),
    ({'data': {'real': ''}}, r'config\.data\.real: empty; name the pairs'),
    ({'data': {'real': 'emojitasks:nonsense'}}, r"no task 'nonsense'"),
    ({'data': {'level': 'hierarchical'}}, r'config\.data\.length: 80, but an image, the prompt'),
    ({'data': {'plan': 'PLAN', 'real': f'{TASKS}1'}}, r'plan of emojitasks.*48 records, .* 482 '),
    ({'data': {'plan': 'PLAN', 'real': f'{TASKS}&seed=1'}}, r'the same ids, but hold something'),
    ({'data': {'plan': 'WIDE'}}, r'batch size 8 .* batch plan are of 16'),
    ({'data': {'plan': '/no/such'}}, r'/no/such: no such'),
    ({'remine': {'every': 2, 'k': 3}}, r'config\.remine\.every: nothing to mine with'),
    (
      {'remine': {'every': 2}, 'batch_size': 12},
      r'config\.batch_size: 12, but clusters',
    ),
    ({'remine': {'every': 2}, 'data': {'plan': 'PLAN'}}, r'config\.remine\.k: 7, but .* are of 4'),
    (
      {'remine': {'every': 2, 'k': 3, 'data': SCENES + '&pairs=image_to_caption'}},
      r'config\.remine\.data: of 48 pairs .* 48 are none of the records',
    ),
    ({'remine': {'every': 2, 'lag': 2}}, r'config\.remine\.lag: 2 must be'),
  ],
)
def test_what_does_not_fit_is_said_before_it_starts(changes, message, plan, tmp_path):
  data = changes.get('data', {})
  named = {'PLAN': plan, 'WIDE': plan.replace('.plan', '.wide')}
  if 'plan' in data:
    changes = {**changes, 'data': {**data, 'plan': named.get(data['plan'], data['plan'])}}
  with pytest.raises(UserError, match=message):
    run(tmp_path / 'run', **changes)
  assert not (tmp_path / 'run' / 'checkpoints').exists() or not any(
    (tmp_path / 'run' / 'checkpoints').iterdir()
  )


def test_a_plan_and_a_source_that_grows_do_not_go_together(plan):
  values = tiny.config_values('folder:x', data={'plan': plan, 'follow': 2})
  with pytest.raises(UserError, match=r'config\.data\.follow: a batch plan is of data'):
    make_config(values)


def test_a_plan_of_a_mixture_is_refused(plan, tmp_path):
  scenes = {'real': SCENES, 'generated': SCENES, 'text': 'plain', 'plan': plan, 'length': 12}
  with pytest.raises(UserError, match=r'config\.data\.plan: .*several'):
    run(tmp_path, objective=tiny.CONTRASTIVE, model=tiny.SMALL_MODEL, data=scenes)


def test_several_processes_do_not_mine_while_they_train(monkeypatch, tmp_path):
  remine = {'every': 2, 'k': 3, 'data': f'{SCENES}&pairs=image_to_caption'}
  config = make_config(tiny.config_values(SCENES, remine=remine))
  monkeypatch.setattr('jax.process_count', lambda: 2)
  with pytest.raises(UserError, match=r'config\.remine\.every: .* one process'):
    Remining(config.remine, tmp_path, mine, planned=False)
  assert dataclasses.asdict(config)['remine']['every'] == 2
