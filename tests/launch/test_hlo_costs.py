"""Counts of compiled programs against what the same programs cost on paper."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from launch.hlo import Shape, parse, shapes
from launch.hlo_costs import Counter, Moved, group_size
from launch.hlo_loops import trip_count
from launch.hlo_memory import largest_buffers

pytestmark = pytest.mark.usefixtures('optimised')

DATA = Path(__file__).parent / 'data'
ROOT = Path(__file__).parent.parent.parent


def compiled(function, *shapes_, **options):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes_]
  return parse(jax.jit(function, **options).lower(*arguments).compile().as_text())


def cost(function, *shapes_):
  return Counter(compiled(function, *shapes_)).cost()


def stored(name):
  """A program compiled for v5e by libtpu 0.0.42, without its backend settings."""
  return parse((DATA / name).read_text().replace('@ROOT@', str(ROOT)))


def test_matrix_product():
  assert cost(jnp.matmul, (64, 32), (32, 48)).flops == 2 * 64 * 32 * 48


def test_batched_product():
  def einsum(a, b):
    return jnp.einsum('bij,bkj->bik', a, b)

  assert cost(einsum, (4, 16, 32), (4, 24, 32)).flops == 2 * 4 * 16 * 24 * 32


def layers(x, weights):
  return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


def test_loop_is_multiplied():
  found = cost(layers, (16, 32), (7, 32, 32))
  assert found.flops == 7 * 2 * 16 * 32 * 32
  assert not found.unknown_loops


def test_loop_in_a_loop_is_multiplied_by_both():
  def nested(x, w):
    return jax.lax.fori_loop(0, 5, lambda _, h: layers(h, w), x)

  assert cost(nested, (16, 32), (7, 32, 32)).flops == 5 * 7 * 2 * 16 * 32 * 32


def test_gradient_costs_twice_the_forward_more():
  def loss(w, x):
    return jnp.sum(layers(x, w) ** 2)

  found = cost(jax.grad(loss), (7, 32, 32), (16, 32))
  assert found.flops == 3 * 7 * 2 * 16 * 32 * 32


def test_loop_of_unknown_length_is_counted_once_and_named():
  def until(x, w):
    return jax.lax.while_loop(lambda h: jnp.sum(h) < 100, lambda h: h @ w, x)

  found = cost(until, (16, 32), (32, 32))
  assert found.flops == 2 * 16 * 32 * 32
  assert len(found.unknown_loops) == 1 and 'while' in found.unknown_loops[0]


def test_dearest_branch_counts():
  def either(x, w):
    def long():
      return jnp.tanh(x @ w) @ w

    return jax.lax.cond(x[0, 0] > 0, long, lambda: x @ w)

  assert cost(either, (16, 32), (32, 32)).flops == 2 * 2 * 16 * 32 * 32


@pytest.mark.parametrize(
  ('options', 'kernel', 'expected'),
  [
    # the window meets 3 * 8 - 2 real elements of each dimension, the rest is padding
    ({'padding': 'SAME'}, (3, 3, 4, 6), 22 * 22 * 4 * 6),
    ({'padding': 'VALID'}, (3, 3, 4, 6), 18 * 18 * 4 * 6),
    ({'padding': 'VALID', 'window_strides': (2, 2)}, (2, 2, 4, 6), 8 * 8 * 4 * 6),
    ({'padding': 'SAME', 'feature_group_count': 4}, (3, 3, 1, 4), 22 * 22 * 4),
    ({'padding': 'VALID', 'rhs_dilation': (2, 2)}, (3, 3, 4, 6), 12 * 12 * 4 * 6),
    # holes between the elements: each of the 8 meets the 2 taps of the window once
    ({'padding': ((1, 1), (1, 1)), 'lhs_dilation': (2, 2)}, (2, 2, 4, 6), 16 * 16 * 4 * 6),
  ],
)
def test_convolution(options, kernel, expected):
  def conv(x, k):
    settings = {'window_strides': (1, 1), **options}
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, k, dimension_numbers=numbers, **settings)

  assert cost(conv, (5, 8, 8, 4), kernel).flops == 2 * 5 * expected


def sharded(function, inputs, outputs):
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('a', 'b'))
  return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


A, AB, WHOLE = PartitionSpec('a'), PartitionSpec(('a', 'b')), PartitionSpec()
BYTES = 16 * 128 * 4  # of one device's part of f32[64,128] split four ways


@pytest.mark.parametrize(
  ('function', 'outputs', 'kind', 'expected'),
  [
    (lambda x: jax.lax.psum(x, 'a'), WHOLE, 'all-reduce', 2 * 3 / 4 * BYTES),
    (lambda x: jax.lax.psum(x, ('a', 'b')), WHOLE, 'all-reduce', 2 * 7 / 8 * BYTES),
    (lambda x: jax.lax.all_gather(x, 'a', tiled=True), WHOLE, 'all-gather', 3 * BYTES),
    (lambda x: jax.lax.psum_scatter(x, 'a', tiled=True), A, 'reduce-scatter', 3 / 4 * BYTES),
    (lambda x: jax.lax.all_to_all(x, 'a', 1, 0, tiled=True), A, 'all-to-all', 3 / 4 * BYTES),
    (
      lambda x: jax.lax.ppermute(x, 'a', [(i, (i + 1) % 4) for i in range(4)]),
      A,
      'collective-permute',
      BYTES,
    ),
  ],
)
def test_collective(function, outputs, kind, expected):
  found = cost(sharded(function, A, outputs), (64, 128))
  assert found.collectives == {kind: Moved(1, expected)}


def test_collective_in_a_loop_is_multiplied():
  def ring(x):
    def step(_, h):
      return jax.lax.ppermute(h, 'a', [(i, (i + 1) % 4) for i in range(4)]) * 2

    return jax.lax.fori_loop(0, 6, step, x)

  assert cost(sharded(ring, A, A), (64, 128)).collectives == {
    'collective-permute': Moved(6, 6 * BYTES)
  }


def test_traffic_reads_operands_and_writes_the_result():
  found = cost(lambda a, b: a @ b, (64, 32), (32, 48))
  assert found.traffic == 4 * (64 * 32 + 32 * 48 + 64 * 48)


def test_traffic_of_a_slice_is_the_slice():
  table = (1000, 128)
  taken = cost(lambda t: jax.lax.dynamic_slice(t, (3, 0), (2, 128)) * 2, table)
  assert taken.traffic < 10 * 2 * 128 * 4
  loop = cost(lambda t: jax.lax.fori_loop(0, 9, lambda i, s: s + t[i], jnp.zeros(128)), table)
  assert loop.traffic < 9 * 10 * 128 * 4


def test_traffic_of_an_update_in_place_is_the_update():
  def fill(t):
    return jax.lax.fori_loop(0, 9, lambda i, t: t.at[i].set(jnp.float32(i)), t)

  module = compiled(fill, (1000, 128), donate_argnums=0)
  assert Counter(module).cost().traffic < 9 * 10 * 128 * 4


def test_shape_with_tiles():
  tiled = shapes('(bf16[6,250,500]{2,1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, u32[]{:S(2)})')
  assert [s.space for s in tiled] == [1, 0, 2]
  assert tiled[0].size == 6 * 250 * 500 * 2
  assert tiled[0].padded == 6 * 256 * 512 * 2
  assert tiled[1].padded == 128 * 4
  assert Shape('f32', (3, 5, 7), '1,2,0:T(8,128)').padded == 3 * 8 * 128 * 4
  assert shapes('pred[8]{0}')[0].size == 8 and shapes('s4[8]{0:E(4)}')[0].size == 4


@pytest.mark.parametrize(
  ('text', 'size'),
  [
    ('replica_groups={{0,1,2},{3,4,5}}, x', 3),
    ('replica_groups=[4,2]<=[8], x', 2),
    ('replica_groups=[2,4]<=[4,2]T(1,0), x', 4),
    ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a','b'}, x", 4),
    ("replica_groups=mesh['a'=8,'c'=2] {'a':(2)4,'c'}, x", 8),
    ('replica_groups={}, x', 16),
  ],
)
def test_group_size(text, size):
  assert group_size(text, 16) == size


# --- programs of the TPU compiler ---


def test_tpu_scan_of_layers():
  """A loss of six layers f(h) = tanh(h w), rematerialised, sharded 2 x 2, and its update."""
  module = stored('tpu_scan.hlo')
  counter = Counter(module)
  found = counter.cost()
  assert not found.unknown_loops
  # forward, forward again, and two products backward, each 64 x 512 x 512 on a chip
  assert found.flops == 4 * 6 * 2 * 64 * 512 * 512
  weight, n = 512 * 512 * 2, 6
  assert found.collectives == {
    'all-gather': Moved(2 * n, 2 * n * weight / 2),  # of the weights, halves on each of two
    'reduce-scatter': Moved(n, n * weight / 2),  # of their gradients, fused with the slicing
    # of those again over the other axis; and of the loss over all four
    'all-reduce': Moved(n + 1, n * 2 / 2 * weight / 2 + 2 * 3 / 4 * 4),
  }


def test_tpu_loops_say_no_count_but_are_followed():
  module = stored('tpu_scan.hlo')
  loops = [i for i in module.entry if i.opcode == 'while']
  assert len(loops) == 2 and 'known_trip_count' not in loops[0].attributes
  assert [trip_count(module, module.entry, loop) for loop in loops] == [6, 6]


COUNTED = """HloModule counted

%body (s: (s32[])) -> (s32[]) {
  %s = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %by = s32[] constant(3)
  %next = s32[] OPERATION(%i, %by)
  ROOT %out = (s32[]) tuple(%next)
}

%condition (s: (s32[])) -> pred[] {
  %s = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %bound = s32[] constant(BOUND)
  ROOT %on = pred[] compare(%i, %bound), direction=DIRECTION
}

ENTRY %main () -> (s32[]) {
  %first = s32[] constant(5)
  %state = (s32[]) tuple(%first)
  ROOT %loop = (s32[]) while(%state), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
  ('operation', 'direction', 'bound', 'expected'),
  [
    ('add', 'LT', 17, 4),
    ('add', 'LT', 18, 5),
    ('add', 'LE', 17, 5),
    ('add', 'NE', 17, 4),
    ('add', 'LT', 4, 0),
    ('subtract', 'GT', -7, 4),
    ('subtract', 'GE', -7, 5),
    ('multiply', 'LT', 1000, None),
    ('subtract', 'LT', 17, None),  # runs until the number wraps round
  ],
)
def test_counter_of_a_loop(operation, direction, bound, expected):
  text = COUNTED.replace('OPERATION', operation).replace('DIRECTION', direction)
  module = parse(text.replace('BOUND', str(bound)))
  assert trip_count(module, module.entry, module.entry.root) == expected


def test_tpu_buffers_name_the_line_of_this_project():
  module = stored('tpu_scan.hlo')
  counter = Counter(module)
  counter.cost()
  largest = largest_buffers(module, counter.scheduled)[0]
  assert largest.shape == 'bf16[6,256,512]' and largest.size == 6 * 256 * 512 * 2
  assert largest.source == 'align_jax/example.py:16' and largest.op_name == 'jit(f)/sub'


def test_tpu_frames_innermost_first():
  module = stored('tpu_scan.hlo')
  product = next(i for c in module.computations.values() for i in c if i.opcode == 'convolution')
  lines = [line for _, line in module.frames(product)]
  # the layer, then the scan and the call of the loss by turns, last the call of the step
  assert lines[:3] == [11, 13, 15] and lines[-1] == 19


def test_tpu_convolutions_and_batched_products():
  same = (3 * 32 - 2) ** 2  # pairs of a SAME window of 3 with an image of 32
  expected = 2 * 8 * (same * 64 * 128 + same * 64 + 128**3)
  assert Counter(stored('tpu_convolutions.hlo')).cost().flops == expected


def test_tpu_collectives_are_counted_once_whether_started_or_fused():
  part = 512 * 1024 * 4
  assert Counter(stored('tpu_collectives.hlo')).cost().collectives == {
    'all-gather': Moved(1, 3 * part),
    'reduce-scatter': Moved(1, 3 / 4 * 4 * part),
    'all-to-all': Moved(1, 3 / 4 * 4 * part),
    'collective-permute': Moved(1 + 5, 6 * part),
    'all-reduce': Moved(1, 2 * 15 / 16 * 4),
  }


def test_tpu_collective_spread_over_fusions_is_one():
  """One all-gather runs beside three matrix products, and shows in five fusions."""
  module = stored('tpu_async.hlo')
  shown = sum(i.opcode == 'all-gather' for c in module.computations.values() for i in c)
  assert shown == 5
  found = Counter(module).cost()
  assert found.collectives == {'all-gather': Moved(1, 3 * 64 * 256 * 3 * 4 * 64 * 2)}
  # two gradients of 256 x 4096 and one of 256 x 1024, over 64 rows of 256
  assert found.flops == 2 * 64 * 256 * (2 * 256 * 4096 + 256 * 1024)


def test_tpu_kernel_costs_what_it_says():
  found = Counter(stored('tpu_kernel.hlo')).cost()
  assert found.flops == 2 * 256**3 and not found.unknown_kernels
  silent = (DATA / 'tpu_kernel.hlo').read_text().replace('cost_estimate', 'other')
  assert len(Counter(parse(silent)).cost().unknown_kernels) == 1


def test_ten_megabytes_are_read_in_seconds():
  text = (DATA / 'tpu_scan.hlo').read_text()
  begin = text.index('%fc')
  entry = text.index('\nENTRY')
  many = [text[:begin]]
  for k in range(10 * 2**20 // (entry - begin)):
    many.append(text[begin:entry].replace('%', f'%c{k}.'))
  begin_s = time.process_time()
  module = parse(''.join(many) + text[begin:entry] + text[entry:])
  assert Counter(module).cost().flops == 4 * 6 * 2 * 64 * 512 * 512
  assert time.process_time() - begin_s < 20
