"""Where the seconds go, with a clock that stands still unless it is told."""

import pytest

from align_jax.train.timing import Timer, note_start, read_starts


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def run(timer, clock, steps, *, data, device, transfer=0.5, late=2):
  """The loop's order: draw, send and dispatch a batch; read the metrics `late` steps later."""
  ready = clock.now  # when the device is through with all that was dispatched
  finished = {}

  def read(step):
    clock.now = max(clock.now, finished[step])
    timer.done(step)

  for step in steps:
    with timer.part('data', step):
      clock.now += data
    with timer.part('transfer', step):
      clock.now += transfer
    ready = finished[step] = max(ready, clock.now) + device
    if step - late in finished:
      read(step - late)
  for step in steps[-late:]:
    read(step)


def test_a_fast_host_waits_for_the_device():
  clock = Clock()
  timer = Timer(clock=clock)
  run(timer, clock, range(1, 101), data=1, device=10)
  window = timer.window()
  assert window['time/data_s'] == 1 and window['time/transfer_s'] == 0.5
  # only the first batch has to be waited for: 1.5 s among 100 steps
  assert window['time/step_s'] == pytest.approx(10 + 1.5 / 100)
  assert window['time/compute_s'] == pytest.approx(8.5 + 1.5 / 100)


def test_a_slow_host_is_seen_as_data_wait_however_late_the_metrics_are_read():
  clock = Clock()
  timer = Timer(clock=clock)
  run(timer, clock, range(1, 5), data=10, device=1)  # half of them are read at the end
  window = timer.window()
  assert window['time/data_s'] == 10 and window['time/transfer_s'] == 0.5
  assert window['time/compute_s'] <= 1 / 4  # the last step alone is waited for
  assert timer.kept == pytest.approx(4 * window['time/step_s']) == clock.now - 100


def test_a_window_counts_its_own_steps_and_begins_anew():
  clock = Clock()
  timer = Timer(clock=clock)
  for step, seconds in ((1, 4.0), (2, 6.0), (3, 2.0)):
    with timer.part('data', step):
      clock.now += seconds
  timer.done(1)
  timer.done(2)
  assert timer.window()['time/data_s'] == 5
  timer.done(3)
  assert timer.window()['time/data_s'] == 2
  assert set(timer.window().values()) == {0.0}


def test_saving_evaluation_and_compiling_are_told_apart_from_a_step():
  clock = Clock()
  timer = Timer(clock=clock)
  with timer.part('compile'):
    clock.now += 60
  for step in (1, 2):
    clock.now += 3
    timer.done(step)
  with timer.part('eval'):
    clock.now += 20
  window = timer.window()
  assert window['time/step_s'] == window['time/compute_s'] == 3
  assert window['time/eval_s'] == 10  # per step, as the others
  assert window['time/compile_s'] == 60  # once
  with timer.part('save'):
    clock.now += 8
  clock.now += 3
  timer.done(3)
  window = timer.window()
  assert (window['time/step_s'], window['time/save_s'], window['time/eval_s']) == (3, 8, 0)
  assert 'time/compile_s' not in window


def test_a_part_that_fails_is_counted():
  clock = Clock()
  timer = Timer(clock=clock)
  with pytest.raises(OSError), timer.part('save'):
    clock.now += 2
    raise OSError
  clock.now += 1
  timer.done(1)
  assert timer.window()['time/save_s'] == 2 and timer.kept == 1


def test_goodput_is_the_share_of_kept_steps_in_all_the_time():
  clock = Clock()
  timer = Timer(clock=clock)
  assert timer.goodput == 0
  with timer.part('compile'):
    clock.now += 5
  for step in (1, 2, 3):
    clock.now += 5
    timer.done(step)
  assert timer.kept == 15 and timer.goodput == 0.75
  # the process dies; the checkpoint was of step 2, and 30 s pass until another goes on
  again = Timer(kept=10.0, passed=20.0 + 30.0, clock=clock)
  for step in (3, 4):
    clock.now += 5
    again.done(step)
  assert again.kept == 20 and again.goodput == pytest.approx(20 / 60)


def test_goodput_stays_a_share_when_clocks_disagree():
  clock = Clock()
  timer = Timer(kept=50.0, passed=10.0, clock=clock)
  assert timer.goodput == 1.0


def test_starts_are_kept_in_order(tmp_path):
  assert read_starts(tmp_path) == []
  note_start(tmp_path, {'at': 1.0, 'step': 0})
  both = note_start(tmp_path, {'at': 9.0, 'step': 4, 'device': 'cpu'})
  assert [s['step'] for s in both] == [0, 4]
  assert read_starts(tmp_path) == both
