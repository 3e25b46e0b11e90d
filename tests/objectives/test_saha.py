"""The objective of embedders: its loss, what of the model learns, sides without images."""

import jax
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.losses.table import PLAIN
from align_jax.train.objective import batch_loss
from tests import tiny


def embedded(objective_values=tiny.SAHA, model=tiny.EMBEDDER, batch=None):
  objective, skeleton = tiny.method(objective_values, model)
  params = skeleton.init(jax.random.key(0))
  bound = skeleton.bind(params)
  batch = tiny.batch(8) if batch is None else batch
  return objective, bound, batch, objective.embed(bound, batch)


def test_loss_is_info_nce_of_float64():
  objective, model, batch, outputs = embedded()
  query, candidate = (np.asarray(outputs[k], np.float64) for k in ('query', 'candidate'))
  np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-6)
  group = np.asarray(batch['group'])
  scores = query @ candidate.T / tiny.SAHA['temperature']
  log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
  same = group[:, None] == group
  wanted = -np.mean((log_p * same).sum(axis=1) / same.sum(axis=1))
  loss, metrics = objective.loss(model, outputs, batch, PLAIN)
  np.testing.assert_allclose(float(loss), wanted, rtol=1e-5)
  cosine = np.mean(np.sum(query * candidate, axis=1))
  np.testing.assert_allclose(float(metrics['positive_cosine']), cosine, atol=1e-6)


def test_equal_candidates_may_be_pushed_apart_as_in_the_paper():
  objective, model, batch, outputs = embedded({**tiny.SAHA, 'same_candidate_is_positive': False})
  query, candidate = (np.asarray(outputs[k], np.float64) for k in ('query', 'candidate'))
  scores = query @ candidate.T / tiny.SAHA['temperature']
  wanted = -np.mean(np.diag(scores) - np.log(np.exp(scores).sum(axis=1)))
  np.testing.assert_allclose(
    float(objective.loss(model, outputs, batch, PLAIN)[0]), wanted, rtol=1e-5
  )


def test_a_text_does_not_see_the_image_of_its_row():
  objective, model, batch, outputs = embedded()
  other = {**batch, 'query_image': 255 - batch['query_image']}
  after = objective.embed(model, other)['query']
  moved = np.abs(np.asarray(after - outputs['query'])).max(axis=1)
  assert (moved[1::2] == 0).all() and (moved[::2] > 0).all()


@pytest.mark.parametrize(
  ('learn', 'some', 'none'),
  [
    ('lora', ['decoder'], ['image', 'projector']),
    ('decoder', ['decoder', 'projector'], ['image']),
    ('all', ['decoder', 'projector', 'image'], []),
  ],
)
def test_what_learns_has_gradients_and_nothing_else(learn, some, none):
  values = {**tiny.SAHA, 'learn': learn}
  objective, skeleton = tiny.method(values, tiny.EMBEDDER)
  params = skeleton.init(jax.random.key(0))
  # adapters begin with no effect: the matrix before it has no gradient then
  params = {n: p + 0.02 if 'lora' in n else p for n, p in params.items()}
  names = {name for name in params if objective.trainable(name)}
  assert {name.split('/')[0] for name in names} == set(some)
  assert not {name.split('/')[0] for name in names} & set(none)
  assert learn != 'lora' or all('lora' in name for name in names)

  def loss(learnt):
    return batch_loss(
      objective, skeleton.bind({**params, **learnt}), tiny.batch(8), jax.random.key(1)
    )[0]

  grads = jax.grad(loss)({name: params[name] for name in names})
  unused = {'decoder/head/kernel', 'image/norm/scale', 'image/norm/bias'}
  still = {name for name, g in grads.items() if not np.abs(np.asarray(g)).any()}
  assert still <= unused


def test_adapters_that_are_to_learn_must_be_there():
  with pytest.raises(UserError, match=r'config\.model\.decoder\.lora: none'):
    tiny.method(tiny.SAHA, tiny.MULTIMODAL)[1].init(jax.random.key(0))
  with pytest.raises(UserError, match=r'config\.objective\.temperature: 0'):
    tiny.method({**tiny.SAHA, 'temperature': 0}, tiny.EMBEDDER)
