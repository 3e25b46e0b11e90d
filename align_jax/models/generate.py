"""Texts of a multimodal model: greedy, sampled, or the best of a beam."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from align_jax.models.decoder import Cache, empty_cache
from align_jax.models.multimodal import Multimodal

_NEVER = -1e9  # of what cannot be chosen; finite, for sums of it must compare


class Prompt(NamedTuple):
  """Texts to go on with, padded on the left.

  Attributes:
    tokens: see `Multimodal.__call__`.
    segment: 1 of a token, 0 of padding.
    images: see `Multimodal.see`; None: no images.
  """

  tokens: Int[Array, 'batch length']
  segment: Int[Array, 'batch length']
  images: Array | None = None


def sample(
  model: Multimodal,
  prompt: Prompt,
  key: Array,
  *,
  most: int,
  end_id: int,
  pad_id: int,
  temperature: float = 0.0,
  top_p: float = 1.0,
  gate: Float[Array, 'batch'] | None = None,
  image_gate: Float[Array, 'batch'] | None = None,
) -> Int[Array, 'batch most']:
  """Writes on, token by token.

  Args:
    model: bound to parameters.
    prompt: what to go on with.
    key: of the choices.
    most: tokens to write.
    end_id: ends a text; it is part of it.
    pad_id: of what comes after.
    temperature: logits are divided by it; 0 takes the likeliest.
    top_p: the choice is among the fewest likeliest tokens that together have this probability
      (arXiv 1904.09751, section 3.1).
    gate, image_gate: see `Multimodal.__call__`.
  """
  state = _start(model, prompt, most, gate, image_gate)
  out = jnp.full((len(prompt.tokens), most), pad_id, jnp.int32)
  ended = jnp.zeros(len(prompt.tokens), bool)

  def more(carry: tuple) -> Array:
    at, _, _, ended = carry
    return (at < most) & ~ended.all()

  def step(carry: tuple) -> tuple:
    at, state, out, ended = carry
    token = choose(state.logits, jax.random.fold_in(key, at), temperature, top_p)
    token = jnp.where(ended, pad_id, token)
    out = out.at[:, at].set(token)
    return at + 1, _next(model, state, token, gate), out, ended | (token == end_id)

  return jax.lax.while_loop(more, step, (jnp.int32(0), state, out, ended))[2]


def choose(
  logits: Float[Array, 'batch vocab'], key: Array, temperature: float, top_p: float
) -> Int[Array, 'batch']:
  """Chooses a token of each row, see `sample`."""
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    share = jax.nn.softmax(ordered, axis=-1)
    inside = jnp.cumsum(share, axis=-1) - share < top_p  # the first always is
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def beam_search(
  model: Multimodal,
  prompt: Prompt,
  *,
  beams: int,
  most: int,
  end_id: int,
  pad_id: int,
  length_penalty: float = 1.0,
  gate: Float[Array, 'batch'] | None = None,
  image_gate: Float[Array, 'batch'] | None = None,
) -> tuple[Int[Array, 'batch most'], Float[Array, 'batch']]:
  """Finds the text of highest score: its log probability by its length to the `length_penalty`.

  Args:
    model, prompt, most, end_id, pad_id, gate, image_gate: see `sample`.
    beams: unfinished texts that are kept.
    length_penalty: 0 compares plain log probabilities.

  Returns: the best finished text of each prompt, or unfinished where none is; and its score.

  Source: Wu et al. 2016, arXiv 1609.08144, section 7, with the penalty of `transformers`.
  """
  batch = len(prompt.tokens)
  state = _start(model, prompt, most, gate, image_gate)
  state = jax.tree.map(functools.partial(_repeat, beams=beams, batch=batch), state)
  gates = None if gate is None else jnp.repeat(gate, beams)
  rows = jnp.arange(batch)[:, None]
  blank = jnp.full((batch, beams, most), pad_id, jnp.int32)
  # at first all beams are the same: only one of them counts
  alive = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER) * jnp.ones((batch, 1))
  done = jnp.full((batch, beams), _NEVER)

  def more(carry: tuple) -> Array:
    at, _, _, alive, _, done = carry
    # as in `transformers` with early_stopping=False: could the best beam, ended now, still enter?
    best = alive[:, 0] / jnp.maximum(at, 1) ** length_penalty
    return (at < most) & (best > done[:, -1]).any()

  def step(carry: tuple) -> tuple:
    at, state, texts, alive, ended, done = carry
    total = alive[:, :, None] + jax.nn.log_softmax(state.logits).reshape(batch, beams, -1)
    vocab = total.shape[-1]
    # twice as many: at most half of them end
    score, place = jax.lax.top_k(total.reshape(batch, -1), 2 * beams)
    beam, token = place // vocab, place % vocab
    texts = texts[rows, beam].at[:, :, at].set(token)
    ends = token == end_id
    # a text that would not be among the beams is no end either, as in `transformers`
    entered = ends & (jnp.arange(2 * beams) < beams)
    finished = jnp.where(entered, score / (at + 1.0) ** length_penalty, _NEVER)
    done, order = jax.lax.top_k(jnp.concatenate([done, finished], axis=1), beams)
    ended = jnp.concatenate([ended, texts], axis=1)[rows, order]
    alive, order = jax.lax.top_k(jnp.where(ends, _NEVER, score), beams)
    texts, beam, token = texts[rows, order], beam[rows, order], token[rows, order]
    source = (rows * beams + beam).reshape(-1)
    state = _select(state, source)
    return at + 1, _next(model, state, token.reshape(-1), gates), texts, alive, ended, done

  carry = jnp.int32(0), state, blank, alive, blank, done
  at, _, texts, alive, ended, done = jax.lax.while_loop(more, step, carry)
  alive = alive / jnp.maximum(at, 1.0) ** length_penalty
  done, order = jax.lax.top_k(jnp.concatenate([done, alive], axis=1), 1)
  best = jnp.concatenate([ended, texts], axis=1)[rows, order][:, 0]
  return best, done[:, 0]


class _State(NamedTuple):
  """Texts so far: logits of the next token, what was read, and how many tokens each has."""

  logits: Float[Array, 'batch vocab']
  cache: Cache
  length: Int[Array, 'batch']


def _start(
  model: Multimodal, prompt: Prompt, most: int, gate: Array | None, image_gate: Array | None
) -> _State:
  batch, length = prompt.tokens.shape
  cache = empty_cache(model.config.decoder, batch, length + most)
  position = jnp.maximum(jnp.cumsum(prompt.segment, axis=1) - 1, 0)
  seen = None if prompt.images is None else model.see(prompt.images, image_gate)
  hidden, cache = model.read(prompt.tokens, prompt.segment, position, cache, seen, gate)
  return _State(model.decoder.logits(hidden[:, -1]), cache, position[:, -1] + 1)


def _next(
  model: Multimodal, state: _State, token: Int[Array, 'batch'], gate: Array | None
) -> _State:
  segment = jnp.ones_like(token)[:, None]
  position = state.length[:, None]
  hidden, cache = model.read(token[:, None], segment, position, state.cache, None, gate)
  return _State(model.decoder.logits(hidden[:, -1]), cache, state.length + 1)


def _repeat(x: Array, beams: int, batch: int) -> Array:
  if x.ndim == 0:
    return x
  return jnp.repeat(x, beams, axis=1 if x.ndim == 5 else 0)


def _select(state: _State, source: Int[Array, 'rows']) -> _State:
  cache = state.cache
  cache = Cache(cache.key[:, source], cache.value[:, source], cache.segment[source], cache.used)
  return _State(state.logits[source], cache, state.length[source])


def is_finished(texts: Int[Array, 'batch most'], end_id: int) -> Bool[Array, 'batch']:
  """Says which texts have an end."""
  return (texts == end_id).any(axis=1)
