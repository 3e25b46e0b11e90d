"""A disk that fills up while a checkpoint is written: one line, and the one before survives."""

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.objectives import make_objective
from align_jax.train.checkpoints import load_params
from align_jax.train.loop import train
from tests import tiny
from tests.train import disk


@pytest.fixture
def small_disk(tmp_path):
  with disk.small_disk(tmp_path / 'disk', mebibytes=4) as folder:
    yield folder


def test_the_earlier_checkpoint_survives_a_full_disk(small_disk, tmp_path):
  photos = f'folder:{tiny.photo_folder(tmp_path / "photos", each=4)}'
  config = tiny.config(photos, steps=30, checkpoint={'every': 1, 'keep': 30})
  with pytest.raises((UserError, OSError)) as caught:
    train(config, make_objective(config.objective), small_disk / 'run')
  if isinstance(caught.value, UserError):
    assert 'the disk is full' in str(caught.value)
  else:  # the metrics file met it first; the command line makes one line of it
    assert caught.value.errno == 28
  params = load_params(small_disk / 'run')
  assert params
  assert all(np.isfinite(p).all() for p in params.values())
