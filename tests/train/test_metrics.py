"""metrics.jsonl survives kills and repeats no step on resume."""

import json
import math
import subprocess
import sys

from align_jax.train.metrics import MetricWriter, Progress, read_metrics


def test_resume_drops_lines_after_the_restored_step(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  for step in (1, 2, 3):
    writer.write(step, {'loss': float(step)})
  writer.close()
  writer = MetricWriter(tmp_path, resume_step=2)
  writer.write(3, {'loss': 30.0})
  writer.close()
  assert [(m['step'], m['loss']) for m in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  writer.write(1, {'loss': 1.0})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "lo')
  assert [m['step'] for m in read_metrics(tmp_path)] == [1]


def test_lines_are_json_even_when_a_value_is_not_finite(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  writer.write(1, {'loss': math.inf})
  writer.close()
  line = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(line) == {'step': 1, 'loss': None}


def test_knows_which_steps_were_evaluated(tmp_path):
  writer = MetricWriter(tmp_path, resume_step=0)
  writer.write(1, {'loss': 1.0})
  writer.write(2, {'loss': 1.0})
  writer.write(2, {'score': 0.5})
  writer.write(4, {'score': 0.5})
  writer.close()
  writer = MetricWriter(tmp_path, resume_step=3)
  writer.close()
  assert [writer.has_evaluation(step) for step in (1, 2, 4)] == [False, True, False]


def test_time_left_follows_the_pace_without_jumping(capsys):
  progress = Progress('mine', 1000)
  progress.show(400, 0.5, 64.0, 0.1)  # 600 steps of 0.1 s
  progress.show(500, 0.25, 128.0, 0.2)  # 500 of 0.1 + 0.3 × (0.2 - 0.1)
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    'mine: step 400/1000  loss 0.5000  64 examples/s  1.0 min left',
    'mine: step 500/1000  loss 0.2500  128 examples/s  1.1 min left',
  ]


def test_a_quiet_process_says_nothing(capsys):
  progress = Progress('mine', 10, quiet=True)
  progress.say('begins')
  progress.show(1, 0.5, 1.0, 1.0)
  assert capsys.readouterr() == ('', '')


def test_a_run_starts_without_what_takes_seconds_to_import(tmp_path):
  """In a process of its own: this one has imported all of it."""
  program = (
    'import sys\n'
    'import align_jax.main\n'
    'from pathlib import Path\n'
    'from align_jax.train.metrics import MetricWriter\n'
    'writer = MetricWriter(Path(sys.argv[1]), resume_step=0)\n'
    "writer.write(1, {'loss': 1.0})\n"
    'writer.close()\n'
    "print([m for m in ('torch', 'sklearn', 'pandas', 'transformers', 'umap') if m in sys.modules])"
  )
  run = [sys.executable, '-c', program, str(tmp_path)]
  done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=True)
  assert done.stdout.strip() == '[]'
