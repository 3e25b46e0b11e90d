"""The caption objective through a tiny model: the loss by hand, routes, locks, operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import build
from align_jax.errors import UserError
from align_jax.models.decoder import SHARED
from align_jax.models.multimodal import MultimodalConfig
from align_jax.objectives import make_objective
from align_jax.objectives.caption import part_of
from align_jax.train.objective import batch_loss
from tests import tiny

LORA = tiny.TRACKS['lora']
PARTS = {'image', 'image_lora', 'projector', 'decoder', 'decoder_lora'}
MODEL = {
  **tiny.MULTIMODAL,
  'image': {**tiny.MULTIMODAL['image'], 'depth': 1},
  'decoder': {**tiny.MULTIMODAL['decoder'], 'depth': 1, 'lora': LORA},
  'image_lora': LORA,
}
BATCH = tiny.batch()


def objective(**settings):
  return make_objective({'name': 'caption', **settings})


@functools.cache
def made():
  """The model and parameters that all matter: adapters are not at their zero start."""
  skeleton = tiny.method({'name': 'caption'}, MODEL)[1]
  rng = np.random.default_rng(0)
  spread = {
    n: 0.3 / np.sqrt(s.shape[-2] / 16) if s.ndim > 1 else 0.1 for n, s in skeleton.shapes.items()
  }
  return skeleton, {
    n: jnp.asarray(rng.normal(0, spread[n], s.shape), jnp.float32) + n.endswith('scale')
    for n, s in skeleton.shapes.items()
  }


@functools.partial(jax.jit, static_argnums=0)
def _run(method, params, batch):
  fn = lambda p: batch_loss(method, made()[0].bind(p), batch, jax.random.key(0))  # noqa: E731
  return jax.value_and_grad(fn, has_aux=True)(params)


def run(method, batch=BATCH, params=None):
  (loss, metrics), gradients = _run(method, made()[1] if params is None else params, batch)
  return float(loss), metrics, {n for n, g in gradients.items() if np.any(g)}


def test_loss_is_the_mean_over_the_tokens_of_all_answers():
  skeleton, params = made()

  @jax.jit
  def logits(params):
    model = skeleton.bind(params)
    ones = jnp.ones(len(BATCH['tokens']))
    hidden = model(BATCH['tokens'], BATCH['segment'], BATCH['image'][:, None], gate=ones)
    return model.decoder.logits(hidden)

  x = np.asarray(logits(params), np.float64)
  total, tokens, right = 0.0, 0, 0
  for row, own in enumerate(np.asarray(BATCH['answer'])):
    for place in np.flatnonzero(own):
      said, token = x[row, place - 1], int(BATCH['tokens'][row, place])
      total += np.log(np.exp(said - said[token]).sum())
      right += said.argmax() == token
      tokens += 1
  assert tokens == 4 * 1 + 2 * 1 + 2 * 5 + 4  # answers of several lengths
  loss, metrics, _ = run(objective())
  assert loss == pytest.approx(total / tokens, rel=1e-5)
  assert metrics['token_accuracy'] == pytest.approx(right / tokens)


def test_weight_answer_is_the_mean_of_the_means_over_each_answer():
  alone = [run(objective(), {k: v[i : i + 1] for k, v in BATCH.items()})[0] for i in range(8)]
  assert len({*np.asarray(BATCH['answer']).sum(axis=1).tolist()}) > 1  # of several lengths
  loss, _, _ = run(objective(weight='answer'))
  np.testing.assert_allclose(loss, np.mean(alone), rtol=1e-5)
  silent = {**BATCH, 'answer': BATCH['answer'].at[3:].set(False)}  # rows without an answer
  np.testing.assert_allclose(
    run(objective(weight='answer'), silent)[0], np.mean(alone[:3]), rtol=1e-5
  )


def test_questions_that_share_an_image_are_learnt_as_if_each_had_it():
  rng = np.random.default_rng(3)
  rests = [rng.integers(3, 300, size) for size in (6, 9, 5)]
  shared = np.asarray(BATCH['tokens'][0, :20])  # begins with the image
  one = {k: v[:1] for k, v in BATCH.items()}

  def row(parts, segment):
    tokens, segment = np.concatenate(parts)[None], np.asarray([segment])
    place = np.arange(segment.shape[1])
    starts = np.maximum.accumulate(np.where(np.diff(segment[0], prepend=-2) != 0, place, 0))
    answer = ((place - starts) >= 3) & (segment > 0) & (place >= 20)  # three tokens ask
    named = {'tokens': tokens, 'segment': segment, 'answer': answer}
    return one | {name: jnp.asarray(value) for name, value in named.items()}

  alone = []
  for rest in rests:
    own = row([shared, rest], [1] * (20 + len(rest)))
    own['answer'] = own['answer'].at[:, :23].set(False).at[:, 23:].set(True)
    alone.append(own)
  numbers = [SHARED] * 20 + [i + 1 for i, rest in enumerate(rests) for _ in rest]
  together = row([shared, *rests], numbers)
  assert int(together['answer'].sum()) == sum(int(own['answer'].sum()) for own in alone)
  method, params = objective(weight='answer'), made()[1]
  (loss, metrics), gradients = _run(method, params, together)
  single = [_run(method, params, own) for own in alone]
  np.testing.assert_allclose(loss, np.mean([s[0][0] for s in single]), rtol=1e-5)
  assert metrics['answer_accuracy'] == pytest.approx(
    np.mean([s[0][1]['answer_accuracy'] for s in single])
  )
  for name, gradient in gradients.items():
    wanted = np.mean([s[1][name] for s in single], axis=0)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6 + 1e-4 * np.abs(wanted).max())


def test_padding_and_questions_are_not_learnt_but_read():
  method = objective()
  pad = np.where(np.asarray(BATCH['segment']) == 0, 77, BATCH['tokens'])
  assert run(method, {**BATCH, 'tokens': jnp.asarray(pad)})[0] == pytest.approx(
    run(method)[0], rel=1e-6
  )
  other = np.array(BATCH['tokens'])
  other[:, 19] = 5
  assert run(method, {**BATCH, 'tokens': jnp.asarray(other)})[0] != pytest.approx(
    run(method)[0], rel=1e-4
  )
  turned = {**BATCH, 'image': 255 - BATCH['image']}
  assert run(method, turned)[0] != pytest.approx(run(method)[0], rel=1e-4)


def test_naive_route_ignores_the_modality_and_the_adapters():
  naive, params = objective(), made()[1]
  want = run(naive)[0]
  assert run(naive, {**BATCH, 'modality': 1 - BATCH['modality']})[0] == want
  other = {n: p + 1 if part_of(n) == 'image_lora' else p for n, p in params.items()}
  assert run(naive, params=other)[0] == want
  assert not naive.trainable('image/blocks/layer/mlp/up/lora/a')


def test_modality_route_reads_the_adapter_for_generated_images_alone():
  routed, naive = objective(route='modality'), run(objective())[0]
  zeros = jnp.zeros_like(BATCH['modality'])
  assert run(routed, {**BATCH, 'modality': zeros})[0] == pytest.approx(naive, rel=1e-6)
  assert run(routed, {**BATCH, 'modality': zeros + 1})[0] != pytest.approx(naive, rel=1e-4)


@pytest.mark.parametrize(
  'lock', [(), ('image', 'decoder'), ('image', 'image_lora', 'decoder_lora')]
)
def test_lock_freezes_what_it_says_and_nothing_else(lock):
  method = objective(route='modality', lock=lock)
  learning = {}
  for name in made()[0].shapes:
    learning.setdefault(part_of(name), set()).add(method.trainable(name))
  assert learning == {part: {part not in lock} for part in PARTS}


def test_without_locks_every_parameter_has_a_gradient():
  still = set(made()[0].shapes) - run(objective(route='modality'))[2]
  # keys' shifts cancel in their softmax; the tower is read before its last norm
  assert {n for n in still if not n.startswith('image/norm')} == set()


def test_a_route_without_adapters_is_refused():
  with pytest.raises(UserError, match=r"config\.model\.image_lora: none, but .*route='modality'"):
    tiny.method({'name': 'caption', 'route': 'modality'}, tiny.MULTIMODAL)


def test_an_unknown_part_is_named():
  with pytest.raises(
    UserError, match=r"config\.objective\.lock\[0\]: 'text' is not one of 'image'"
  ):
    objective(lock=('text',))


def test_operations_are_those_that_the_compiler_counts(optimised):
  method, skeleton = tiny.method({'name': 'caption'}, {**tiny.MULTIMODAL})
  config = build(MultimodalConfig, tiny.MULTIMODAL)
  fn = lambda p, b: batch_loss(method, skeleton.bind(p), b, jax.random.key(0))[0]  # noqa: E731
  compiled = jax.jit(jax.grad(fn)).lower(skeleton.shapes, BATCH).compile()
  counted = compiled.cost_analysis()['flops'] / len(BATCH['image'])
  # element-wise work of so small a model comes on top
  assert method.flops(config) < counted < 1.6 * method.flops(config)


def test_what_is_locked_has_no_backward_pass_for_weights():
  config = build(MultimodalConfig, MODEL)
  image, projector, decoder = config.image.flops, config.projector_flops, config.decoder_flops
  wanted = {
    (): 3 * image + 3 * projector + 3 * decoder,
    ('image', 'image_lora'): image + 3 * projector + 3 * decoder,
    ('image',): 2 * image + 3 * projector + 3 * decoder,
    ('image', 'image_lora', 'projector'): image + projector + 3 * decoder,
    ('decoder',): 3 * image + 3 * projector + 2 * decoder,
  }
  for lock, flops in wanted.items():
    assert objective(route='modality', lock=lock).flops(config) == flops


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image_id': 300}, r'config\.model\.image_id: 300 is none of the 300 tokens'),
    ({'length': 16}, r'config\.model\.length: 16, but an image alone takes 16'),
  ],
)
def test_a_model_that_cannot_be(changes, message):
  with pytest.raises(UserError, match=message):
    build(MultimodalConfig, {**tiny.MULTIMODAL, **changes}, 'config.model')
