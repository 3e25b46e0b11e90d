"""--profile_steps: what it takes, and that the trace holds the steps that were asked for."""

import jax
import pytest

from align_jax.errors import UserError
from align_jax.train.profiling import Profiler, parse_steps
from align_jax.train.timing import Timer
from tests.train.traces import step_numbers


@pytest.mark.parametrize(
  ('text', 'steps'), [('', None), ('10:13', (10, 13)), ('1:1', (1, 1)), (' 20:20', (20, 20))]
)
def test_reads_first_and_last(text, steps):
  assert parse_steps(text, 20) == steps


@pytest.mark.parametrize('text', ['3', '3-4', 'a:b', '3:', '-1:2', '0:2', '4:3', '19:21', '1:2:3'])
def test_refuses_what_are_no_steps_of_the_run(text):
  with pytest.raises(UserError, match='--profile_steps') as error:
    parse_steps(text, 20)
  assert '\n' not in str(error.value)


def traced(folder, asked, start, last):
  """Steps of a small computation; returns their numbers as the trace has them."""
  profiler = Profiler(folder, asked, start, Timer())
  compute = jax.jit(lambda x: x @ x)
  x = jax.numpy.ones((8, 8))
  for step in range(start + 1, last + 1):
    profiler.before(step, x)
    with profiler.step(step):
      x = compute(x)
    profiler.after(step, x)
  profiler.close()
  return step_numbers(folder / 'profile')


def test_the_trace_holds_the_steps_asked_for(tmp_path):
  assert traced(tmp_path, (2, 3), 0, 5) == {2, 3}


def test_goes_on_in_the_middle_of_them(tmp_path):
  assert traced(tmp_path, (2, 5), 3, 6) == {4, 5}


def test_a_run_that_ends_early_leaves_what_it_has(tmp_path):
  assert traced(tmp_path, (2, 5), 0, 3) == {2, 3}


def test_steps_that_are_past_or_not_asked_for_leave_no_trace(tmp_path):
  assert traced(tmp_path, (2, 3), 3, 5) == set()
  assert traced(tmp_path, None, 0, 2) == set()
  Profiler(None, (1, 2), 0, Timer()).before(1, ())  # another process traces
  assert not list(tmp_path.iterdir())
