"""The loop end to end: it learns, resumes bit for bit, refuses what is wrong before it starts."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from align_jax.data.sources import open_source
from align_jax.errors import Preempted, UserError
from align_jax.objectives import make_objective
from align_jax.parallel.chips import Peak
from align_jax.train import journal, loop
from align_jax.train.checkpoints import load_params
from align_jax.train.loop import train
from align_jax.train.metrics import read_metrics
from align_jax.train.plan import plan
from align_jax.train.timing import Timer, read_starts
from tests import tiny
from tests.train.traces import step_numbers


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return f'folder:{tiny.photo_folder(tmp_path_factory.mktemp("photos"))}'


@pytest.fixture(scope='module')
def base(photos, tmp_path_factory):
  """A trained run that others start from."""
  folder = tmp_path_factory.mktemp('base')
  config = tiny.config(photos)
  train(config, make_objective(config.objective), folder)
  return folder


@pytest.fixture(scope='module')
def generated(photos, tmp_path_factory):
  source = open_source(photos)
  records = [source[i] for i in range(len(source))]
  return tiny.generated_shards(tmp_path_factory.mktemp('generated') / 'shards', records)


def _train(config, folder):
  return train(config, make_objective(config.objective), folder)


def _equal(a, b):
  return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_learns_and_leaves_a_whole_run_folder(photos, tmp_path):
  config = tiny.config(photos, steps=40, optimizer={'lr': 3e-3, 'warmup_steps': 1}, log_every=5)
  _train(config, tmp_path)
  losses = [m['loss'] for m in read_metrics(tmp_path)]
  assert losses[-1] < 0.8 * losses[0]
  assert {'config.json', 'tokenizer', 'checkpoints', 'metrics.jsonl', 'tensorboard'} <= set(
    os.listdir(tmp_path)
  )


def test_a_run_cut_off_anywhere_ends_as_if_it_never_was(photos, base, tmp_path, monkeypatch):
  class Cut(Exception):
    pass

  config = tiny.config(photos)
  real_put, steps = loop.put_batch, 0

  def put(batch, mesh):
    nonlocal steps
    steps += 1
    if steps in (4, 6):  # once between checkpoints, once right after the resumed start
      raise Cut
    return real_put(batch, mesh)

  monkeypatch.setattr(loop, 'put_batch', put)
  for _ in range(2):
    with pytest.raises(Cut):
      _train(config, tmp_path)
  assert _equal(_train(config, tmp_path), load_params(base))
  assert [m['step'] for m in read_metrics(tmp_path)] == [2, 4, 6]


_SCRIPT = """
import os, sys
os.environ['JAX_PLATFORMS'] = 'cpu'
from pathlib import Path
from align_jax.objectives import make_objective
from align_jax.train.loop import train
from tests import tiny
config = tiny.config(sys.argv[1], steps=60, checkpoint={'every': 4})
train(config, make_objective(config.objective), Path(sys.argv[2]))
"""


def test_killed_and_rerun_ends_with_the_same_weights_bit_for_bit(photos, tmp_path):
  """SIGKILL at a moment nobody chose, twice; then a run to the end, against one never killed."""
  command = [sys.executable, '-c', _SCRIPT, photos]
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  for wait in (0.3, 1.1):
    process = subprocess.Popen([*command, str(killed)], stderr=subprocess.DEVNULL)
    lines = killed / 'metrics.jsonl'
    seen = len(read_metrics(killed))
    deadline = time.monotonic() + 120
    while len(read_metrics(killed)) <= seen and process.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.05)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lines.exists()
  for folder in (killed, whole):
    subprocess.run([*command, str(folder)], check=True, timeout=240)
  assert _equal(load_params(killed), load_params(whole))
  steps = [m['step'] for m in read_metrics(killed)]
  assert steps == sorted(set(steps))
  assert steps[-1] == 60


def test_alignment_never_changes_the_real_track(base, generated, photos, tmp_path):
  config = tiny.config(
    photos,
    model={**tiny.TRACKS, 'init': f'run:{base}'},
    objective=tiny.GMAIL,
    data={'generated': generated},
    optimizer={'lr': 1e-2, 'warmup_steps': 1},
  )
  after = _train(config, tmp_path)
  before = load_params(base)
  changed = {n for n in after if n not in before or not np.array_equal(before[n], after[n])}
  assert changed
  assert all('lora' in n.split('/') or n.startswith('generated_projection') for n in changed)
  cosines = [m['paired_cosine'] for m in read_metrics(tmp_path)]
  assert all(np.isfinite(cosines))


def test_starts_from_given_weights_with_their_tokenizer(base, generated, photos, tmp_path):
  config = tiny.config(
    photos,
    steps=1,
    model={**tiny.TRACKS, 'init': f'run:{base}'},
    optimizer={'warmup_steps': 0},
  )
  _train(config, tmp_path)
  tokenizer = 'tokenizer/tokenizer.json'
  assert (tmp_path / tokenizer).read_text() == (base / tokenizer).read_text()
  after, before = load_params(tmp_path), load_params(base)
  assert np.allclose(
    after['generated_projection/kernel'], before['image_projection/kernel'], atol=0
  )


def test_evaluates_on_the_way(photos, tmp_path):
  config = tiny.config(photos, eval={'every': 3, 'data': photos})
  seen = []
  train(
    config,
    make_objective(config.objective),
    tmp_path,
    evaluate=lambda params: seen.append(len(params)) or {'score': float(len(seen))},
  )
  assert [m['score'] for m in read_metrics(tmp_path) if 'score' in m] == [1.0, 2.0]


def test_a_loss_that_is_not_finite_stops_and_names_step_and_records(photos, tmp_path):
  config = tiny.config(
    photos, optimizer={'lr': 1e30, 'warmup_steps': 0, 'clip_norm': 0.0}, checkpoint={'every': 1}
  )
  with pytest.raises(UserError, match=r'loss is .* at step \d+, records .*jpg'):
    _train(config, tmp_path)
  assert all(np.isfinite(p).all() for p in load_params(tmp_path).values())


def test_accumulation_is_refused_where_it_would_lose_negatives(photos, tmp_path):
  config = tiny.config(photos, optimizer={'accumulate': 2})
  with pytest.raises(UserError, match='accumulate'):
    _train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'dim': 8}}, r'config\.model\.dim: 8, but the run .* has 16'),
    ({'seed': 1}, r'config\.seed: 1, but'),
    ({'batch_size': 8}, r'config\.batch_size: 8, but'),
  ],
)
def test_resume_with_another_config_is_refused(photos, base, changes, message):
  with pytest.raises(UserError, match=message):
    _train(tiny.config(photos, **changes), base)


def _broken(photos, generated, base, tmp_path):
  """Every mistake of a config: (changes, what the message says)."""
  no_pairs = tmp_path / 'no_pairs'
  source = open_source(photos)
  others = [source[i] for i in range(12)]
  others = [type(r)(**{**vars(r), 'id': f'other-{r.id}'}) for r in others]
  unpaired = tiny.generated_shards(no_pairs, others)
  empty = tmp_path / 'empty'
  empty.mkdir()
  silent = tmp_path / 'silent'
  silent.mkdir()
  tiny.picture('red', 'disc', 0).save(silent / 'a.png')
  (silent / 'captions.jsonl').write_text(json.dumps({'file': 'a.png'}) + '\n')
  gmail = {'objective': tiny.GMAIL, 'model': tiny.TRACKS}
  return [
    ({'data': {'real': 'folder:/nowhere'}}, '/nowhere'),
    ({'data': {'real': f'folder:{empty}'}}, 'empty'),
    ({'data': {'real': f'folder:{silent}'}}, 'caption'),
    ({'data': {'real': 'floder:x'}}, "did you mean 'folder'"),
    ({'data': {'real': ''}}, 'neither real nor generated'),
    ({**gmail, 'data': {'generated': unpaired}}, 'pair_id'),
    ({**gmail, 'data': {}}, 'config.data.generated: empty'),
    ({**gmail, 'data': {'real': '', 'generated': generated}}, 'config.data.partners'),
    ({'batch_size': 12}, 'config.batch_size: 12 is not divisible by the 8 devices'),
    ({'mesh': {'data': 3, 'fsdp': 1, 'tensor': 1}}, 'config.mesh'),
    ({'model': {'image': {**tiny.MODEL['image'], 'image_size': 30}}}, 'not divisible by patch 8'),
    ({'model': {'imag': 1}}, "did you mean 'image'"),
    ({'model': {'init': 'run:/nowhere'}}, '/nowhere'),
    ({'model': {'init': 'somewhere'}}, 'config.model.init'),
    ({'model': {'text': {**tiny.MODEL['text'], 'vocab_size': 10}}}, 'vocab_size'),
    ({'model': {'dim': 8, 'init': f'run:{base}'}}, 'has shape'),
    ({'objective': {'name': 'gmial'}}, "did you mean 'gmail'"),
    ({'objective': {'name': 'contrastive', 'frm': 'x'}}, "did you mean 'form'"),
  ]


def test_bad_input_is_named_before_anything_is_trained(photos, generated, base, tmp_path):
  for index, (changes, message) in enumerate(_broken(photos, generated, base, tmp_path)):
    folder = tmp_path / f'run{index}'
    try:
      _train(tiny.config(photos, **changes), folder)
      said = 'no error'
    except UserError as error:
      said = str(error)
    assert message in said, changes
    assert '\n' not in said
    assert not (folder / 'checkpoints').exists(), changes


def test_unreadable_records_are_skipped_counted_and_stop_the_run_over_the_share(tmp_path):
  photos = tiny.photo_folder(tmp_path / 'photos', each=20)
  for path in sorted(photos.rglob('*.jpg'))[::12]:
    path.write_bytes(path.read_bytes()[:200])
  config = tiny.config(f'folder:{photos}', steps=12)
  _train(config, tmp_path / 'run')
  lines = [json.loads(x) for x in (tmp_path / 'run/quarantine.jsonl').read_text().splitlines()]
  assert {line['reason'] for line in lines} == {'corrupt'}
  strict = tiny.config(f'folder:{photos}', steps=12, data={'max_skipped': 0.01})
  with pytest.raises(UserError, match='corrupt'):
    _train(strict, tmp_path / 'strict')


TIMES = {f'time/{name}_s' for name in ('step', 'data', 'transfer', 'compute', 'save', 'eval')}


def test_lines_say_where_the_time_goes(photos, tmp_path, monkeypatch):
  monkeypatch.setattr(journal, 'find_peak', lambda device: Peak('a chip', 1e9))
  config = tiny.config(photos)
  _train(config, tmp_path)
  lines = read_metrics(tmp_path)
  flops = plan(config, make_objective(config.objective)).flops
  for line in lines:
    assert TIMES | {'goodput', 'restarts', 'memory/host_peak_gib'} <= set(line)
    parts = sum(line[f'time/{name}_s'] for name in ('data', 'transfer', 'compute'))
    assert line['time/step_s'] == pytest.approx(parts)
    assert line['examples_per_s'] == pytest.approx(config.batch_size / line['time/step_s'])
    assert line['mfu'] == pytest.approx(flops / (line['time/step_s'] * 8 * 1e9))
    assert 0 < line['goodput'] <= 1 and line['restarts'] == 0
  assert [('time/compile_s' in line) for line in lines] == [True, False, False]
  assert [line['time/save_s'] > 0 for line in lines] == [False, True, True]  # of the step before
  (start,) = read_starts(tmp_path)
  assert (start['step'], start['devices'], start['chip']) == (0, 8, 'a chip')
  assert start['step_flops'] == flops


def test_a_chip_we_do_not_know_has_no_mfu(base):
  assert not any('mfu' in line for line in read_metrics(base))


def test_goodput_over_a_run_that_was_killed(photos, tmp_path, monkeypatch):
  """A second for each batch, lost steps, a pause, a second start: all by a clock of our own."""

  class Cut(Exception):
    pass

  now, sent = [1000.0], 0
  clock = types.SimpleNamespace(time=lambda: now[0])
  real_put = loop.put_batch

  def put(batch, mesh):
    nonlocal sent
    sent += 1
    if sent == 4:  # steps 1 to 3 are done, step 2 is saved
      raise Cut
    now[0] += 1
    return real_put(batch, mesh)

  monkeypatch.setattr(loop, 'put_batch', put)
  monkeypatch.setattr(loop, 'time', clock)
  monkeypatch.setattr(journal, 'time', clock)
  monkeypatch.setattr(journal, 'Timer', functools.partial(Timer, clock=clock.time))
  config = tiny.config(photos)
  with pytest.raises(Cut):
    _train(config, tmp_path)
  assert now[0] == 1003
  now[0] += 10
  _train(config, tmp_path)
  lines = {m['step']: m for m in read_metrics(tmp_path)}
  assert lines[2]['restarts'] == 0 and lines[6]['restarts'] == 1
  assert lines[6]['time/transfer_s'] == lines[6]['time/step_s'] == 1
  assert lines[6]['goodput'] == pytest.approx(6 / (3 + 10 + 4))  # step 3 was made twice
  assert [s['step'] for s in read_starts(tmp_path)] == [0, 2]
  _train(config, tmp_path)  # it is over: no further start
  assert len(read_starts(tmp_path)) == 2


def test_an_evaluation_that_a_stop_left_no_time_for_is_made_up(photos, tmp_path, monkeypatch):
  @contextlib.contextmanager
  def told(*steps):
    yield lambda step: step in steps

  config = tiny.config(photos, eval={'every': 3, 'data': photos})
  seen = []

  def score(params):
    seen.append({n: np.array(p) for n, p in params.items()})
    return {'score': float(len(seen))}

  def run(*stops):
    monkeypatch.setattr(loop.preemption, 'watch', lambda: told(*stops))
    objective = make_objective(config.objective)
    return train(config, objective, tmp_path, evaluate=score)

  with pytest.raises(Preempted):
    run(3)
  assert seen == []
  run(6)  # the end is no preemption, but its evaluation gives way all the same
  assert [(m['step'], m['score']) for m in read_metrics(tmp_path) if 'score' in m] == [(3, 1.0)]
  last = run()
  assert [m['step'] for m in read_metrics(tmp_path) if 'score' in m] == [3, 6]
  assert _equal(seen[1], last) and not _equal(seen[0], last)
  run()
  assert len(seen) == 2  # nothing is owed any more
  assert [m['step'] for m in read_metrics(tmp_path)] == [2, 3, 4, 6, 6]


def test_an_evaluation_falls_in_the_window_of_its_step(photos, tmp_path):
  config = tiny.config(photos, steps=4, log_every=1, eval={'every': 2, 'data': photos})
  train(config, make_objective(config.objective), tmp_path, evaluate=lambda params: {'score': 1.0})
  lines = read_metrics(tmp_path)
  assert [m['step'] for m in lines] == [1, 2, 2, 3, 4, 4]
  assert [m['time/eval_s'] > 0 for m in lines if 'loss' in m] == [False, True, False, True]


def test_profiles_the_steps_asked_for(photos, tmp_path):
  config = tiny.config(photos, steps=4)
  observe = journal.Observe(profile=(3, 4))
  train(config, make_objective(config.objective), tmp_path, observe=observe)
  assert step_numbers(tmp_path / 'profile') == {3, 4}
