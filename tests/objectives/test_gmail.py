"""GMAIL's first stage through a real, tiny model: what moves, and the loss by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.objectives import make_objective
from tests.losses import reference
from tests.objectives import tools
from tests.objectives.tools import BATCH, GROUP

PAIRED = np.asarray(BATCH['has_partner'])
MATCHES = reference.matches(GROUP, GROUP)
TAU = 0.2


def objective(**settings):
  return make_objective({'name': 'gmail', 'temperature': TAU, **settings})


def text_term(out):
  return reference.info_nce(out['generated'], out['text'], 1 / TAU, MATCHES)


@pytest.mark.parametrize('form', ['one_way', 'symmetric', 'sigmoid'])
def test_loss_is_equation_1_on_what_the_encoders_say(form):
  out = tools.embedded()
  want = reference.alignment(out['generated'], out['partner'], PAIRED, TAU, form, GROUP)
  got, metrics = tools.loss(objective(form=form))
  assert got == pytest.approx(want, rel=1e-5)
  assert metrics['pair_loss'] == pytest.approx(want, rel=1e-5)
  cosines = np.sum(out['generated'] * out['partner'], axis=1)
  assert metrics['paired_cosine'] == pytest.approx(cosines[PAIRED].mean(), rel=1e-5)
  assert metrics['paired_share'] == pytest.approx(PAIRED.mean())


def test_terms_add_up_by_their_weights():
  out = tools.embedded()
  pair = reference.alignment(out['generated'], out['partner'], PAIRED, TAU, 'one_way', GROUP)
  got, metrics = tools.loss(objective(pair_weight=0.5, text_weight=2.0))
  assert got == pytest.approx(0.5 * pair + 2 * text_term(out), rel=1e-5)
  assert metrics['text_loss'] == pytest.approx(text_term(out), rel=1e-5)


def test_text_term_alone_needs_no_partners():
  alone = objective(pair_weight=0.0, text_weight=1.0)
  assert not alone.needs_partner
  assert objective().needs_partner
  without = {k: v for k, v in BATCH.items() if k not in ('partner', 'has_partner')}
  got, metrics = tools.loss(alone, without)
  assert got == pytest.approx(text_term(tools.embedded()), rel=1e-5)
  assert set(metrics) == {'text_loss'}
  assert any('lora' in name for name in tools.moved(alone, without))


def test_a_batch_without_one_partner_stands_still():
  none = {**BATCH, 'has_partner': jnp.zeros_like(BATCH['has_partner'])}
  assert tools.loss(objective(), none)[0] == 0
  assert not tools.moved(objective(), none)


def test_partners_of_rows_that_have_none_are_not_read():
  other = np.array(BATCH['partner'])
  other[~PAIRED] = 255 - other[~PAIRED]
  got = tools.loss(objective(), {**BATCH, 'partner': jnp.asarray(other)})[0]
  assert got == pytest.approx(tools.loss(objective())[0], rel=1e-6)


def test_only_the_generated_track_learns():
  both = objective(text_weight=1.0)
  assert tools.learning_parts(both) == {'lora', 'generated_projection'}
  # no adapter or projection of the track is left out
  assert tools.moved(both) == {n for n in tools.model()[0].shapes if both.trainable(n)}
  kept = objective(learn_projection=False)
  assert tools.learning_parts(kept) == {'lora'}


def test_no_gradient_leads_into_the_targets():
  """Of the frozen parts only the shared backbone under the generated track has one, unused."""
  found = {n for n, g in tools.gradients(objective(text_weight=1.0)).items() if np.any(g)}
  still = ('image_projection', 'text', 'text_projection', 'log_scale', 'logit_bias')
  assert not {n for n in found if n.split('/')[0] in still}


def test_unknown_form_is_named():
  with pytest.raises(UserError, match=r"config\.objective\.form: 'two_way' is not one of"):
    objective(form='two_way')
