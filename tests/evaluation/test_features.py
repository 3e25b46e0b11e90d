import dataclasses

import numpy as np
import pytest

from align_jax.data.quarantine import Quarantine
from align_jax.errors import UserError
from align_jax.evaluation.features import embed_source, single_labels


def test_rows_carry_their_facts(world, encoder):
  features = embed_source(encoder, world[1], batch_size=7)
  assert features.ids == [f'g{i}' for i in range(24)]
  assert features.pair_ids == [f'r{i}' for i in range(24)]
  assert features.modality == ['generated'] * 24
  assert features.labels[0] == ('red',)
  np.testing.assert_array_equal(features.text_owner, np.arange(24))
  np.testing.assert_allclose(np.linalg.norm(features.image, axis=1), 1, rtol=1e-5)
  np.testing.assert_array_equal(features.text[0], features.text[6])


def test_each_record_is_read_by_its_own_track(world, encoder, list_source):
  mixed = list_source([world[0][0], world[1][1], world[0][2]])
  features = embed_source(encoder, mixed)
  assert encoder.calls == [('real', None), ('generated', None)]
  alone = embed_source(encoder, list_source([world[1][1]]))
  np.testing.assert_array_equal(features.image[1], alone.image[0])


def test_a_fixed_track_and_projection_override(world, encoder):
  embed_source(encoder, world[0], modality='generated', projection='real')
  assert set(encoder.calls) == {('generated', 'real')}


def test_a_repeated_caption_is_encoded_once(world, encoder, list_source):
  first = dataclasses.replace(world[0][0], captions=('a red square', 'red', 'a red square'))
  features = embed_source(encoder, list_source([first, world[0][6]]))
  assert sorted(encoder.texts) == ['a red square', 'red']
  assert features.texts == ['a red square', 'red', 'a red square']
  assert features.text_owner.tolist() == [0, 0, 1]


def test_limit_and_a_broken_image(world, encoder, list_source):
  broken = dataclasses.replace(world[0][2], image=b'not an image')
  # three of four, evenly: the first, the third and the last
  source = list_source([world[0][0], world[0][1], broken, world[0][3]])
  quarantine = Quarantine(None, 1.0, 1)
  assert embed_source(encoder, source, limit=3, quarantine=quarantine).ids == ['r0', 'r3']
  assert sum(quarantine.counts.values()) == 1


def test_nothing_to_embed_names_the_source(world, encoder, list_source):
  with pytest.raises(UserError, match='list:none: no records'):
    embed_source(encoder, list_source([], 'list:none'))
  broken = dataclasses.replace(world[0][1], image=b'')
  with pytest.raises(UserError, match='no usable record among 1'):
    embed_source(encoder, list_source([broken]))


def test_a_diverged_model_is_refused(make_features, unit):
  image = unit(3)
  image[1, 2] = np.nan
  with pytest.raises(UserError, match='1 of 3 are not finite'):
    make_features(image)


def test_single_labels(make_features, unit):
  rows, names = single_labels(make_features(unit(3), labels=[('cat',), ('cat', 'dog'), ()]))
  assert rows.tolist() == [0]
  assert names == ['cat']
