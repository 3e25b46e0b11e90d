"""The contrastive objective through a real, tiny model: routes, locks, losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.objectives import make_objective
from align_jax.train.objective import batch_loss
from tests.losses import reference
from tests.objectives import tools
from tests.objectives.tools import BATCH, GROUP

ALL = {'image', 'image_projection', 'text', 'temperature', 'lora', 'generated_projection'}
MATCHES = reference.matches(GROUP, GROUP)


def objective(**settings):
  return make_objective({'name': 'contrastive', **settings})


def symmetric(image, text, scale, matches=MATCHES):
  there = reference.info_nce(image, text, scale, matches)
  return (there + reference.info_nce(text, image, scale, matches)) / 2


def test_naive_route_ignores_the_modality_and_the_adapters():
  naive = objective()
  turned = {**BATCH, 'modality': 1 - BATCH['modality']}
  want = tools.loss(naive)[0]
  assert tools.loss(naive, turned)[0] == want
  _, params = tools.model()
  other = {n: p + 1 if 'lora' in n or 'generated' in n else p for n, p in params.items()}
  assert tools.loss(naive, params=other)[0] == want
  # nor does the loss, of one batch, depend on chance
  assert tools.loss(naive, key=1)[0] == want


def test_modality_route_reads_the_adapter_for_generated_images_alone():
  routed, naive = objective(route='modality'), tools.loss(objective())[0]
  all_real = {**BATCH, 'modality': jnp.zeros_like(BATCH['modality'])}
  all_generated = {**BATCH, 'modality': jnp.ones_like(BATCH['modality'])}
  out = tools.embedded()
  assert tools.loss(routed, all_real)[0] == pytest.approx(naive, rel=1e-5)
  assert abs(tools.loss(routed, all_generated)[0] - naive) > 1e-3
  # mixed: every row through its own track
  own = np.where(np.asarray(BATCH['modality'])[:, None] == 1, out['generated'], out['real'])
  want = symmetric(own, out['text'], out['scale'])
  assert tools.loss(routed)[0] == pytest.approx(want, rel=1e-5)
  assert abs(want - naive) > 1e-3


@pytest.mark.parametrize('same_caption', [True, False])
def test_softmax_is_that_of_the_reference(same_caption):
  got, metrics = tools.loss(objective(same_caption_is_positive=same_caption))
  out = tools.embedded()
  matches = MATCHES if same_caption else [[i] for i in range(len(GROUP))]
  assert got == pytest.approx(symmetric(out['real'], out['text'], out['scale'], matches), rel=1e-5)
  assert metrics['scale'] == pytest.approx(np.exp(1.5))


def test_sigmoid_is_that_of_the_reference():
  out = tools.embedded()
  labels = np.where(GROUP[:, None] == GROUP[None, :], 1, -1)
  want = reference.sigmoid(out['real'], out['text'], out['scale'], out['bias'], labels)
  assert tools.loss(objective(form='sigmoid'))[0] == pytest.approx(want, rel=1e-5)


def test_sigmoid_without_a_bias_is_refused():
  skeleton, params = tools.model(init_bias=None)
  with pytest.raises(UserError, match=r'config\.model\.init_bias'):
    batch_loss(objective(form='sigmoid'), skeleton.bind(params), BATCH, jax.random.key(0))


@pytest.mark.parametrize(
  'lock', [(), ('image',), ('text',), ('temperature',), ('image', 'image_projection', 'lora')]
)
def test_lock_freezes_what_it_says_and_nothing_else(lock):
  assert tools.learning_parts(objective(lock=lock)) == ALL - set(lock)


def test_by_default_the_generated_track_does_not_learn():
  assert tools.learning_parts(objective()) == ALL - {'lora', 'generated_projection'}


def test_without_locks_every_parameter_has_a_gradient():
  names = set(tools.model()[0].shapes)
  # the softmax has no bias; a shift of all keys cancels in their softmax
  still = {n for n in names if n.endswith('key/bias')} | {'logit_bias'}
  assert names - tools.moved(objective(lock=(), route='modality')) <= still


def test_second_stage_moves_the_text_side_alone():
  lock = ('image', 'image_projection', 'lora', 'generated_projection')
  moved = tools.moved(objective(route='modality', lock=lock))
  assert {n.split('/')[0] for n in moved} == {'text', 'text_projection', 'log_scale'}


def test_an_unknown_part_is_named():
  with pytest.raises(
    UserError, match=r"config\.objective\.lock\[0\]: 'imag' is not one of 'image'"
  ):
    objective(lock=('imag',))
