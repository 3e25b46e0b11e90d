"""The multimodal model as an embedder: its prompts, its vectors."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from align_jax.config import build
from align_jax.data.chat import train_chat
from align_jax.data.chat_template import Turn
from align_jax.data.embed_prompt import SYSTEM, embed_turns
from align_jax.data.pair_record import Content
from align_jax.data.transforms import Transform
from align_jax.embedder import ContentEmbedder, _parts
from align_jax.errors import UserError
from align_jax.models.flat import Skeleton
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from tests import chats, tiny

PATCHES = 16


def png(seed: int) -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


CONTENTS = [
  Content('a red cat'),
  Content('', (png(1),)),
  Content('the same, but blue', (png(1),)),
  Content('two blue dogs'),
]


@pytest.fixture(scope='module')
def make():
  chat = train_chat([*chats.TEXTS * 2, SYSTEM], 300, PATCHES)
  config = build(
    MultimodalConfig,
    {
      **tiny.MULTIMODAL,
      'decoder': {**tiny.MULTIMODAL['decoder'], 'vocab_size': chat.vocab_size},
      'image_id': chat.image_id,
      'length': 400,
    },
    'config.model',
  )
  params = Skeleton(lambda rngs: Multimodal(config, rngs)).init(jax.random.key(0))
  return lambda level, batch=64: ContentEmbedder(
    config, params, chat, Transform(32), 400, level, batch
  )


def test_prompts_say_the_role_once_and_ask_queries_alone():
  content = Content('is it red?', (b'x',))
  system, user = embed_turns(content, 'query', 'Answer the question.', 'hierarchical')
  assert system == Turn('system', SYSTEM)
  request = 'Represent the given text and image in one word.'
  assert user == Turn('user', f'Answer the question.\nis it red?\n{request}', len(request) + 1)
  assert embed_turns(content, 'candidate', '', 'hierarchical') == [
    system,
    Turn('user', 'is it red?'),
  ]
  for role in ('query', 'candidate'):
    asked = embed_turns(Content('', (b'x',)), role, '', 'user')
    only = 'Represent the given image in one word.'
    assert asked == [Turn('user', only, len(only))]
    plain = embed_turns(Content('a cat'), role, 'Find it.', 'none')
    assert plain == [Turn('user', 'Find it.\na cat')]


@pytest.mark.parametrize('level', ['none', 'user', 'hierarchical'])
def test_an_embedding_depends_on_its_content_alone(make, level):
  embed = make(level)
  found = embed(CONTENTS, 'query', 'Find what shows this.')
  assert found.shape == (4, embed.dim) and found.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
  for i, content in enumerate(CONTENTS):
    alone = embed([content], 'query', 'Find what shows this.')
    np.testing.assert_allclose(alone[0], found[i], atol=2e-5)
  gaps = np.linalg.norm(found[:, None] - found, axis=-1) + np.eye(4)
  assert gaps.min() > 1e-3
  other = embed(CONTENTS[:1], 'candidate', 'Find what shows this.')
  assert (np.abs(other[0] - found[0]).max() > 1e-3) == (level == 'hierarchical')


def test_several_images_are_one_content_in_their_order(make):
  embed = make('user')
  contents = [Content('', (png(1), png(2))), Content('', (png(2), png(1))), *CONTENTS[1:3]]
  found = embed(contents, 'query')
  for i, content in enumerate(contents):
    np.testing.assert_allclose(embed([content], 'query')[0], found[i], atol=2e-5)
  gaps = np.linalg.norm(found[:, None] - found, axis=-1) + np.eye(4)
  assert gaps.min() > 1e-3


def test_levels_and_instructions_change_it(make):
  vectors = [make(level)(CONTENTS[:1], 'query')[0] for level in ('none', 'user', 'hierarchical')]
  vectors.append(make('none')(CONTENTS[:1], 'query', 'Find it.')[0])
  gaps = np.linalg.norm(np.stack(vectors)[:, None] - np.stack(vectors), axis=-1) + np.eye(4)
  assert gaps.min() > 1e-3


def test_batches_hold_contents_of_a_kind_cut_to_their_length(make):
  embed = make('user', 16)
  contents = [Content('a cat ' * (1 + i % 7)) for i in range(37)] + CONTENTS[1:3]
  batches = list(embed._batches(contents, 'query', ''))
  assert sorted(i for rows, _, _ in batches for i in rows) == list(range(39))
  # 37 texts: two whole batches, and the five that are left; two images
  assert [len(rows) for rows, _, _ in batches] == [16, 16, 5, 2]
  for rows, tokens, segment in batches:
    assert len({len(contents[i].images) for i in rows}) == 1
    longest = segment.sum(axis=1).max()
    assert longest <= tokens.shape[1] < longest + 32 and tokens.shape == segment.shape
    assert (segment[:, -1] == 1).all()
  lengths = [tokens.shape[1] for _, tokens, _ in batches[:3]]
  assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
  ('count', 'sizes'), [(64, [64]), (70, [64, 6]), (100, [64, 36]), (90, [64, 8, 8, 8, 2]), (3, [3])]
)
def test_what_is_left_over_makes_few_or_small_batches(count, sizes):
  parts = list(_parts(np.arange(count), 8, 64))
  assert [len(part) for part in parts] == sizes
  np.testing.assert_array_equal(np.concatenate(parts), np.arange(count))


def test_bad_contents_are_named(make):
  with pytest.raises(UserError, match='the list of contents is empty'):
    make('none')([], 'query')
  with pytest.raises(UserError, match=r'content broken: .*; leave it out'):
    make('none')([Content('', (b'no image',), 'broken')], 'query')
