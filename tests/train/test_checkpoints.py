"""Checkpoints hold everything; one that is damaged is named, and the one before is used."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from align_jax.errors import UserError
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.train import checkpoints
from align_jax.train.checkpoints import Checkpoints, load_params
from align_jax.train.state import TrainState
from tests.train.test_state import _setup
from tests.train.toy import toy_batch


def _trained(mesh, steps, ema=0.9):
  state, step = _setup(mesh, ema=ema)
  for i in range(steps):
    state, _ = step(state, toy_batch(i))
  return state, step


def _same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@functools.cache
def _mesh():
  return make_mesh(MeshConfig(), jax.devices()[:1])


def _save(folder, *states):
  saved = Checkpoints(folder)
  for number, state in enumerate(states):
    saved.save(state, {'position': number})
  saved.close()


def test_restores_everything_bit_for_bit_and_goes_on_equally(tmp_path):
  state, step = _trained(_mesh(), 3)
  _save(tmp_path, state)
  fresh, _ = _setup(_mesh(), ema=0.9)
  restored, data = Checkpoints(tmp_path).restore(fresh)
  assert data == {'position': 0}
  assert _same(restored, state)
  assert _same(step(restored, toy_batch(3))[0], _trained(_mesh(), 4)[0])


def test_restores_onto_another_mesh(tmp_path):
  state, _ = _trained(make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4]), 2)
  _save(tmp_path, state)
  fresh, _ = _setup(make_mesh(MeshConfig(2, 1, 1), jax.devices()[:2]), ema=0.9)
  restored, _ = Checkpoints(tmp_path).restore(fresh)
  assert _same(restored, state)
  assert restored.learn['kernel'].sharding == fresh.learn['kernel'].sharding


def test_load_params_reads_the_newest_or_the_average(tmp_path):
  first, step = _trained(_mesh(), 1)
  _save(tmp_path, first)
  state, _ = step(_trained(_mesh(), 1)[0], toy_batch(1))
  _save(tmp_path, state)
  assert np.array_equal(load_params(tmp_path)['kernel'], state.learn['kernel'])
  assert np.array_equal(load_params(tmp_path, averaged=True)['kernel'], state.average['kernel'])
  assert np.array_equal(load_params(tmp_path)['shift'], state.frozen['shift'])
  assert not np.array_equal(load_params(tmp_path, step=1)['kernel'], state.learn['kernel'])


def test_no_checkpoint_is_a_clear_error(tmp_path):
  with pytest.raises(UserError, match='holds no checkpoint'):
    load_params(tmp_path)
  assert Checkpoints(tmp_path).latest() is None
  assert Checkpoints(tmp_path).restore(_setup(_mesh())[0]) is None


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A folder with checkpoints of steps 1 and 2, and the states that were saved."""
  folder = tmp_path_factory.mktemp('two')
  states = {steps: _trained(_mesh(), steps)[0] for steps in (1, 2)}
  _save(folder, *states.values())
  return folder, states


def _files(checkpoint):
  return sorted(p for p in checkpoint.rglob('*') if p.is_file())


def _flipped(data, at):
  return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def _damages(path):
  """What can befall a file: (name, its new bytes; None: it is lost)."""
  data = path.read_bytes()
  places = sorted({int(share * (len(data) - 1)) for share in (0.03, 0.5, 0.9)})
  yield from ((f'byte {at} flipped', _flipped(data, at)) for at in places)
  yield 'cut to half', data[: len(data) // 2]
  yield 'lost', None


def test_any_damage_to_the_newest_gives_the_exact_one_before_or_the_exact_newest(
  two, tmp_path, capfd
):
  folder, states = two
  fresh, _ = _setup(_mesh(), ema=0.9)
  newest, before, seen = folder / 'checkpoints/2', folder / 'checkpoints/1', set()
  for path in _files(newest):
    name = path.relative_to(newest)
    whole = path.read_bytes()
    for damage, data in _damages(path):
      run = tmp_path / 'run'
      shutil.copytree(newest, run / 'checkpoints/2')
      shutil.copytree(before, run / 'checkpoints/1')
      target = run / 'checkpoints/2' / name
      target.unlink()
      if data is not None:
        target.write_bytes(data)
      capfd.readouterr()
      restored, position = Checkpoints(run).restore(fresh)
      said = capfd.readouterr().err.splitlines()
      step = int(restored.step)
      case = f'{name}, {damage}: {said}'
      assert _same(restored, states[step]), case
      assert position == {'position': step - 1}, case
      left = sorted(p.name for p in (run / 'checkpoints').iterdir())
      if step == 1:
        assert left == ['1', 'damaged-2'], case
        assert len(said) == 1 and str(run / 'checkpoints/2') in said[0], case
        assert 'step 1 is used' in said[0], case
      else:
        assert (left, said) == (['1', '2'], []), case
      seen.add((name.parts[0], step))
      shutil.rmtree(run)
    assert path.read_bytes() == whole
  assert {('model', 1), ('train', 1), ('data', 1)} <= seen


@pytest.fixture
def damaged(two, tmp_path):
  """A copy of it with a byte of the newest model flipped; its states."""
  shutil.copytree(two[0], tmp_path, dirs_exist_ok=True)
  _flip(tmp_path / 'checkpoints/2/model')
  return tmp_path, two[1]


def _flip(folder):
  """Flips a byte in the middle of the files that hold the arrays."""
  for path in (p for p in _files(folder) if p.parent.name == 'd'):
    data = path.read_bytes()
    path.write_bytes(_flipped(data, len(data) // 2))


def test_training_goes_on_from_the_one_before_and_saves_that_step_anew(damaged):
  folder, states = damaged
  fresh, step = _setup(_mesh(), ema=0.9)
  run = Checkpoints(folder)
  restored, _ = run.restore(fresh)
  again, _ = step(restored, toy_batch(1))
  run.save(again, {})
  run.close()
  assert _same(Checkpoints(folder).restore(fresh)[0], states[2])
  # damaged once more, it gets a name of its own
  _flip(folder / 'checkpoints/2/model')
  assert int(Checkpoints(folder).restore(fresh)[0].step) == 1
  names = sorted(p.name for p in (folder / 'checkpoints').iterdir())
  assert names == ['1', 'damaged-2', 'damaged-2-2']


def test_a_byte_of_a_large_array_which_the_format_does_not_check(tmp_path, capfd):
  """Small arrays lie in checked blocks; large ones in files of their own, compressed, unchecked."""

  def state(step):
    kernel = jax.random.normal(jax.random.key(step), (64, 128)) * (jnp.arange(128) % 4 == 0)
    small = jnp.full(3, step)
    return TrainState(jnp.int32(step), {'kernel': kernel}, {}, {'count': small}, None, small)

  states = {step: state(step) for step in (1, 2)}
  _save(tmp_path / 'whole', *states.values())
  reasons = []
  for share in np.linspace(0.1, 0.9, 6):
    run = tmp_path / f'run{share}'
    shutil.copytree(tmp_path / 'whole', run)
    path = max(_files(run / 'checkpoints/2/model'), key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(_flipped(data, int(share * len(data))))
    capfd.readouterr()
    restored, _ = Checkpoints(run).restore(state(0))
    assert _same(restored, states[int(restored.step)])
    reasons += capfd.readouterr().err.splitlines()
  assert any('damaged, model/kernel not as saved; now damaged-2' in line for line in reasons)
  assert len(reasons) > 3


def test_a_changed_number_that_decodes_is_found_by_its_digest(two, tmp_path, capsys, monkeypatch):
  """No flipped byte, which the format itself may notice, but another value, well written."""
  _, states = two
  wrong = states[2].learn | {'kernel': states[2].learn['kernel'].at[3, 4].add(1e-6)}
  true = checkpoints.entries(checkpoints.flat(checkpoints._items(states[2])))
  _save(tmp_path, states[1])
  monkeypatch.setattr(checkpoints, 'entries', lambda arrays: true)
  _save(tmp_path, dataclasses.replace(states[2], learn=wrong))
  monkeypatch.undo()
  restored, _ = Checkpoints(tmp_path).restore(_setup(_mesh(), ema=0.9)[0])
  assert _same(restored, states[1])
  assert 'damaged, model/kernel not as saved; now damaged-2' in capsys.readouterr().err


def test_all_damaged_is_one_line_and_never_a_fresh_start(damaged):
  folder, _ = damaged
  _flip(folder / 'checkpoints/1/train')
  fresh, _ = _setup(_mesh(), ema=0.9)
  for _ in range(2):
    with pytest.raises(UserError, match=r'no checkpoint is whole: 2 \(.*; 1 \(.*--workdir') as said:
      Checkpoints(folder).restore(fresh)
    assert '\n' not in str(said.value)
  with pytest.raises(UserError, match='no checkpoint is whole'):
    load_params(folder, averaged=True)
  assert sorted(p.name for p in (folder / 'checkpoints').iterdir()) == ['1', '2']
  for step in (1, 2):
    (folder / f'checkpoints/{step}').rename(folder / f'checkpoints/damaged-{step}')
  with pytest.raises(UserError, match='no checkpoint is whole: damaged-1; damaged-2'):
    Checkpoints(folder).restore(fresh)


def test_a_reader_takes_the_one_before_and_changes_nothing(damaged, capsys):
  folder, states = damaged
  files = _files(folder)
  for averaged in (False, True):
    wanted = states[1].averaged_params if averaged else states[1].params
    got = load_params(folder, averaged=averaged)
    assert all(np.array_equal(got[n], wanted[n]) for n in wanted)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{folder}/checkpoints/2: damaged, ')
    assert line.endswith('step 1 is read instead')
  with pytest.raises(UserError, match=r'checkpoints/2: damaged, .*; name another step'):
    load_params(folder, step=2)
  assert _files(folder) == files


def test_a_reader_with_shards_verifies_too(two, tmp_path):
  folder, states = two
  fresh, _ = _setup(make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4]), ema=0.9)
  shardings = {n: p.sharding for n, p in fresh.learn.items()}
  got = load_params(folder, averaged=True, shapes=fresh.learn, shardings=shardings)
  assert all(np.array_equal(got[n], p) for n, p in states[2].averaged_params.items())
  assert got['kernel'].sharding == fresh.learn['kernel'].sharding


def test_what_was_written_before_there_were_digests_is_read_unverified(two, tmp_path, monkeypatch):
  _, states = two
  monkeypatch.setattr(checkpoints, 'seal', lambda position, arrays: dict(position))
  _save(tmp_path, states[2])
  monkeypatch.undo()
  fresh, _ = _setup(_mesh(), ema=0.9)
  restored, position = Checkpoints(tmp_path).restore(fresh)
  assert _same(restored, states[2])
  assert position == {'position': 0}
  got = load_params(tmp_path, averaged=True)
  assert all(np.array_equal(got[n], p) for n, p in states[2].averaged_params.items())
  with pytest.raises(UserError, match='does not fit this config'):
    Checkpoints(tmp_path).restore(_setup(_mesh(), ema=0.0)[0])


def test_a_whole_checkpoint_of_another_config_is_no_damaged_one(two, tmp_path):
  shutil.copytree(two[0], tmp_path, dirs_exist_ok=True)
  fresh, _ = _setup(_mesh(), ema=0.0)
  with pytest.raises(UserError, match=r'does not fit this config \(train/average/kernel is float'):
    Checkpoints(tmp_path).restore(fresh)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']


def test_what_cannot_be_read_now_is_no_damaged_one(two, tmp_path, monkeypatch):
  def refuse(self, *args, **kwargs):
    raise PermissionError(13, 'Permission denied')

  shutil.copytree(two[0], tmp_path, dirs_exist_ok=True)
  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', refuse)
  with pytest.raises(UserError, match=r'checkpoints/2: cannot be read now \(.*Permission denied'):
    Checkpoints(tmp_path).restore(_setup(_mesh(), ema=0.9)[0])
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']
