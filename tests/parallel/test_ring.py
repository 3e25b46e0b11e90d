"""The losses round a ring against the plain ones, on eight simulated devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.losses import alignment, contrastive
from align_jax.parallel import ring as rings
from align_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from align_jax.parallel.ring import Ring
from tests.losses import reference

pytestmark = pytest.mark.usefixtures('optimised')

BATCH, DIM = 24, 6
# the mesh, and the rows worked at a time: all, and numbers that do and do not divide the block
MESHES = [((8, 1, 1), 0), ((2, 4, 1), 2), ((2, 2, 2), 3), ((1, 1, 1), 5)]
SCALE, TAU, BIAS = 14.3, 0.07, -3.0


def _ring(sizes=(8, 1, 1), rows=0):
  devices = jax.devices()[: math.prod(sizes)]
  return Ring(make_mesh(MeshConfig(*sizes), devices), rows=rows)


def _data(batch=BATCH):
  """Embeddings, two groups (some without a match), and who has a partner."""
  rng = np.random.default_rng(0)
  pair = [reference.unit(rng, batch, DIM).astype(np.float32) for _ in range(2)]
  more = np.concatenate([pair[1], reference.unit(rng, batch, DIM).astype(np.float32)])
  groups = rng.integers(0, 16, (2, 2 * batch))
  # the first devices of every mesh have no partner at all
  paired = (rng.random(batch) < 0.6) & (np.arange(batch) >= 6)
  return *pair, more, groups[0][:batch], groups[1][:batch], groups[1], paired


def _cases():
  """Name -> (arguments, the loss by a module and the arguments, its float64 reference)."""
  image, text, more, mine, theirs, many, paired = _data()
  own = [[i] for i in range(BATCH)]
  there, back = reference.matches(mine, theirs), reference.matches(theirs, mine)
  same = np.where(mine[:, None] == theirs[None, :], 1, -1)
  groups = jnp.asarray(mine), jnp.asarray(theirs)

  def symmetric(x, y, s, there, back):
    return (reference.info_nce(x, y, s, there) + reference.info_nce(y, x, s, back)) / 2

  def align(module, x, y, t, form):
    return module.alignment_loss(
      x, y, jnp.asarray(paired), temperature=t, form=form, group=groups[0]
    )

  cases = {
    'info_nce': (
      (image, text, SCALE),
      lambda module, *a: module.info_nce(*a),
      lambda *a: reference.info_nce(*a, own),
    ),
    'info_nce, groups and more keys': (
      (image, more, SCALE),
      lambda module, *a: module.info_nce(*a, groups[0], jnp.asarray(many)),
      lambda *a: reference.info_nce(*a, reference.matches(mine, many)),
    ),
    'symmetric': (
      (image, text, SCALE),
      lambda module, *a: module.symmetric_info_nce(*a),
      lambda *a: symmetric(*a, own, own),
    ),
    'symmetric, groups': (
      (image, text, SCALE),
      lambda module, *a: module.symmetric_info_nce(*a, *groups),
      lambda *a: symmetric(*a, there, back),
    ),
    'sigmoid': (
      (image, text, SCALE, BIAS),
      lambda module, *a: module.sigmoid_loss(*a),
      lambda *a: reference.sigmoid(*a, 2 * np.eye(BATCH) - 1),
    ),
    'sigmoid, groups': (
      (image, text, SCALE, BIAS),
      lambda module, *a: module.sigmoid_loss(*a, *groups),
      lambda *a: reference.sigmoid(*a, same),
    ),
  }
  for form in ('one_way', 'symmetric', 'sigmoid'):
    cases[f'alignment, {form}'] = (
      (image, text, TAU),
      functools.partial(align, form=form),
      lambda x, y, t, form=form: reference.alignment(x, y, paired, t, form, mine),
    )
  return cases


CASES = _cases()
# every test compiles a program: the other losses run on the mesh with all three axes
ON_ALL_MESHES = ('info_nce, groups and more keys', 'sigmoid', 'alignment, symmetric')


class _Plain:
  """The modules of plain losses as one."""

  info_nce = staticmethod(contrastive.info_nce)
  symmetric_info_nce = staticmethod(contrastive.symmetric_info_nce)
  sigmoid_loss = staticmethod(contrastive.sigmoid_loss)
  alignment_loss = staticmethod(alignment.alignment_loss)


class _Round:
  """The losses round a ring, called like the plain ones."""

  def __init__(self, ring):
    for name in ('info_nce', 'symmetric_info_nce', 'sigmoid_loss', 'alignment_loss'):
      setattr(self, name, functools.partial(getattr(rings, name), ring))


def _value_and_grad(fn, args):
  return jax.jit(jax.value_and_grad(fn, argnums=tuple(range(len(args)))))(*args)


def _close(got, expected, tolerance=1e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1e-3))


@functools.cache
def _expected(name):
  args, loss, exact = CASES[name]
  rounded = [np.asarray(np.float32(a), np.float64) for a in args]
  return _value_and_grad(functools.partial(loss, _Plain), [jnp.asarray(a) for a in args]), exact(
    *rounded
  )


@pytest.mark.parametrize(
  ('name', 'sizes', 'rows'),
  [(name, *mesh) for name in CASES for mesh in (MESHES if name in ON_ALL_MESHES else MESHES[::2])],
)
def test_equals_the_plain_loss(name, sizes, rows):
  ring = _ring(sizes, rows)
  args, loss, _ = CASES[name]
  plain, exact = _expected(name)
  split = batch_sharding(ring.mesh)
  args = [jax.device_put(a, split) if np.ndim(a) else jnp.asarray(a) for a in args]
  got = _value_and_grad(functools.partial(loss, _Round(ring)), args)
  _close(got, plain)
  np.testing.assert_allclose(got[0], exact, rtol=1e-5)


@pytest.mark.parametrize('form', ['symmetric', 'sigmoid'])
def test_no_partner_in_the_batch_is_zero_with_zero_gradients(form):
  image, text = (jnp.asarray(x) for x in _data()[:2])
  ring = _ring((2, 2, 2), 2)

  def loss(x, y, t):
    none = jnp.zeros(BATCH, bool)
    return rings.alignment_loss(ring, x, y, none, temperature=t, form=form)

  value, gradients = _value_and_grad(loss, (image, text, jnp.float32(TAU)))
  assert value == 0
  assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_queries_without_positives_are_zero_with_zero_gradients():
  image, text = (jnp.asarray(x) for x in _data()[:2])
  groups = jnp.arange(BATCH), jnp.arange(BATCH) + BATCH

  def loss(x, y, s):
    return rings.info_nce(_ring(), x, y, s, *groups)

  value, gradients = _value_and_grad(loss, (image, text, jnp.float32(SCALE)))
  assert value == 0
  assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_bfloat16_embeddings_are_computed_in_float32():
  args, loss, _ = CASES['symmetric, groups']
  args = [jnp.asarray(a, jnp.bfloat16 if np.ndim(a) else jnp.float32) for a in args]
  value, got = _value_and_grad(functools.partial(loss, _Round(_ring((2, 4, 1), 2))), args)
  plain, expected = _value_and_grad(functools.partial(loss, _Plain), args)
  _close(value, plain)
  # gradients are summed in float32 and rounded once to the 8 bits of a bfloat16
  _close(got, expected, 2**-8)


def test_extreme_scales_stay_finite():
  """Every query equals its key, or is its opposite: logits from -100 to 100, masked ones too."""
  image, *_, paired = _data()
  paired = jnp.asarray(paired)

  def losses(module):
    return lambda x, y, s: (
      module.sigmoid_loss(x, y, s, -10.0)
      + module.alignment_loss(x, y, paired, temperature=1 / s, form='symmetric')
    )

  ring, plain = (
    jax.jit(jax.value_and_grad(losses(module), argnums=(0, 1, 2)))
    for module in (_Round(_ring((2, 4, 1), 2)), _Plain)
  )
  for sign in (1.0, -1.0):
    args = jnp.asarray(image), jnp.asarray(sign * image), jnp.float32(100.0)
    got = ring(*args)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got))
    # a float32 logit of 100 is good to 100 * 2^-24, and its exponential as well
    _close(got, plain(*args), 5e-5)


def test_outside_jit_and_over_one_axis():
  image, text = (jnp.asarray(x) for x in _data()[:2])
  ring = Ring(make_mesh(MeshConfig(2, 2, 2)), axes=('data',), rows=4)
  got = rings.info_nce(ring, image, text, SCALE)
  np.testing.assert_allclose(got, contrastive.info_nce(image, text, SCALE), rtol=1e-5)


def _sizes(fn, *args):
  """The numbers of elements of all arrays of the compiled program, and its text."""
  text = jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2))).lower(*args).compile().as_text()
  shapes = re.findall(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]', text)
  return [math.prod(int(n) for n in shape.split(',') if n) for shape in shapes], text


@pytest.mark.parametrize(
  ('name', 'rows'), [('symmetric_info_nce', 16), ('sigmoid_loss', 0), ('alignment_loss', 0)]
)
def test_no_array_of_the_program_is_larger_than_a_block(name, rows):
  batch, local = 512, 64
  ring = _ring(rows=rows)
  split = batch_sharding(ring.mesh)
  x = jax.ShapeDtypeStruct((batch, DIM), jnp.float32, sharding=split)
  extra = jax.ShapeDtypeStruct((), jnp.float32)
  group = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)

  def loss(module):
    if name == 'alignment_loss':
      return lambda x, y, t, g: module.alignment_loss(
        x, y, g > 0, temperature=t, form='symmetric', group=g
      )
    rest = (BIAS,) if name == 'sigmoid_loss' else ()
    return lambda x, y, s, g: getattr(module, name)(x, y, s, *rest, g, g)

  sizes, text = _sizes(loss(_Round(ring)), x, x, extra, group)
  assert max(sizes) == (rows or local) * local
  assert 'collective-permute' in text
  if rows == 0:  # the measure sees what it is meant to see
    assert max(_sizes(loss(_Plain), x, x, extra, group)[0]) >= local * batch


def test_program_does_not_grow_with_the_ring_and_forms_a_block_once():
  image, text = (jnp.asarray(x) for x in _data()[:2])
  for ring in (_ring((1, 1, 1)), _ring((2, 1, 1)), _ring((8, 1, 1), 1)):
    loss = functools.partial(rings.symmetric_info_nce, ring)
    forward = jax.make_jaxpr(loss)(image, text, SCALE)
    both = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(image, text, SCALE)
    # both directions from one product; the backward pass makes it again, and one for each side
    assert str(forward).count('= dot_general[') == 1
    assert str(both).count('= dot_general[') == 1 + 3


def test_bad_input_is_refused():
  ring = _ring()
  x, group, paired = jnp.ones((8, 3)), jnp.arange(8), jnp.ones(8, bool)
  for fn in (rings.info_nce, rings.symmetric_info_nce):
    with pytest.raises(ValueError, match='both or neither'):
      fn(ring, x, x, 1.0, group)
  with pytest.raises(ValueError, match='both or neither'):
    rings.sigmoid_loss(ring, x, x, 1.0, 0.0, None, group)
  with pytest.raises(ValueError, match='16 queries and 8 keys'):
    rings.info_nce(ring, jnp.ones((16, 3)), x, 1.0)
  with pytest.raises(ValueError, match='4 rows do not split over the 8 devices of data and fsdp'):
    rings.alignment_loss(ring, x[:4], x[:4], paired[:4])
  with pytest.raises(ValueError, match='the mesh has the axes'):
    Ring(ring.mesh, axes=('batch',))
  with pytest.raises(ValueError, match='-1 rows at a time'):
    Ring(ring.mesh, rows=-1)
