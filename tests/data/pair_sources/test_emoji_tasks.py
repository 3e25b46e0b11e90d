"""Emoji tasks: exact, deterministic, with held-out compositions and enough wrong candidates."""

import io
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from align_jax.data.emoji.captions import plural, singular
from align_jax.data.emoji.colours import NATURAL, PALETTE
from align_jax.data.emoji.concepts import scene_concepts
from align_jax.data.emoji.drawing import Painter
from align_jax.data.emoji.layout import position_word
from align_jax.data.emoji.scenes import Background, Item, Scene, is_held_out
from align_jax.data.pair_record import PairSource, content_ids
from align_jax.data.pair_sources import emoji_edits, open_pairs
from align_jax.data.pair_sources.emoji_tasks import META_TASKS, SPLITS, TASKS
from align_jax.errors import UserError
from align_jax.evaluation.emoji_captions import scene_reader

SMALL = 'size=32&concepts=20&count=24&candidates=12'
KNOWN = {concept.name: concept for concept in scene_concepts(120)}
CAT, DOG, BANANA = KNOWN['cat'], KNOWN['dog'], KNOWN['banana']
PLAIN = Background('white', 'white')


def open_task(task, split='test', options=SMALL):
  return open_pairs(f'emojitasks:{task}?split={split}&{options}')


def pixels(content):
  return np.asarray(Image.open(io.BytesIO(content.images[0])))


def mentions(text):
  return sorted((m.label, m.colour, m.count) for m in scene_reader().read(text))


def objects(scene):
  return sorted((i.concept.name, i.colour, i.count) for i in scene.items)


def shown_pairs(blueprint):
  """The concept-colour pairs of a pair's two sides."""
  scenes = [s for s in (blueprint.query.scene, blueprint.positive.scene) if s is not None]
  return {(i.concept, i.colour) for scene in scenes for i in scene.items}


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('split', ['test', 'compositions'])
def test_candidates_are_distinct_and_only_the_first_matches(task, split):
  source = open_task(task, split)
  assert isinstance(source, PairSource) and 'CC BY-SA' in source.licence
  labels = {}
  for i in range(len(source)):
    plan = source.blueprint(i)
    labels[plan.positive.id] = plan.label
  for record in source:
    names = content_ids(record.candidates)
    assert len(names) == len(set(names)) == (20 if task == 'classification' else 12)
    assert record.candidates[0] == record.positive and record.candidates[3].id == names[3]
    mine = record.label.removeprefix(f'{task}: ')
    assert all(labels.get(name) != mine for name in names[1:])
    assert record.instruction and record.task == task
  assert [record.id for record in source] == list(source.ids())


@pytest.mark.parametrize('task', TASKS)
def test_training_shows_no_held_out_composition(task):
  source = open_task(task, 'train')
  for i in range(len(source)):
    assert not source[i].candidates
    assert not any(is_held_out(*pair) for pair in shown_pairs(source.blueprint(i)))


@pytest.mark.parametrize('task', TASKS)
def test_held_out_compositions_are_what_is_asked_for(task):
  source = open_task(task, 'compositions')
  for i in range(len(source)):
    plan = source.blueprint(i)
    answer = plan.positive.scene or plan.query.scene
    held_out = [item for item in answer.items if item.held_out]
    assert len(held_out) == 1 and is_held_out(held_out[0].concept, held_out[0].colour)
    if task == 'composed' and i % 4 < 2:  # a colour or an object: only the result is unseen
      assert not any(item.held_out for item in plan.query.scene.items)
    if task == 'grounding':
      assert held_out[0].colour in plan.query.text


@pytest.mark.parametrize('task', TASKS)
def test_pairs_are_the_same_everywhere(task):
  source = open_task(task)
  longer = open_task(task, options=SMALL.replace('count=24', 'count=30'))
  copy = pickle.loads(pickle.dumps(source))
  with ThreadPoolExecutor(4) as pool:
    threaded = list(pool.map(source.__getitem__, range(8)))
  for i in range(8):
    assert copy[i].query == longer[i].query == threaded[i].query == source[i].query
    assert copy[i].positive == longer[i].positive == threaded[i].positive
    assert copy[i].label == longer[i].label
    assert list(copy[i].candidates) == list(source[i].candidates)
  assert open_task(task, options=f'{SMALL}&seed=1')[0].query != source[0].query
  assert open_pairs(source.spec)[3].query == source[3].query


def test_classes():
  for i, record in enumerate(source := open_task('classification', options='count=30')):
    scene = source.blueprint(i).query.scene
    assert len(scene.items) == 1 and record.positive.text == scene.items[0].concept.name
    assert len(record.candidates) == 120


def test_captions_say_what_is_drawn():
  to_caption, to_image = open_task('image_to_caption'), open_task('caption_to_image')
  for i in range(12):
    plan = to_caption.blueprint(i)
    assert mentions(plan.positive.text) == objects(plan.query.scene)
    for wrong in to_caption[i].candidates[1:]:
      assert mentions(wrong.text) != objects(plan.query.scene)
    back = to_image.blueprint(i)
    assert mentions(back.query.text) == objects(back.positive.scene)
    assert all(objects(s.scene) != objects(back.positive.scene) for s in back.hard)
    drawn = Painter(32).draw(back.positive.scene).image
    assert (pixels(to_image[i].positive) == drawn).all()


def test_labels_do_not_depend_on_the_order_of_objects():
  items = (Item(CAT, 'red', 0.5, ((0.2, 0.2),)), Item(DOG, 'blue', 0.4, ((0.7, 0.7), (0.7, 0.1))))
  one, other = Scene(items, PLAIN), Scene(items[::-1], PLAIN, seed=3)
  assert emoji_edits.objects_label(one) == 'a red cat; two blue dogs'
  assert emoji_edits.objects_label(one) == emoji_edits.objects_label(other)
  assert emoji_edits.scene_label(one) == emoji_edits.scene_label(other)
  moved = emoji_edits.rebackground(one, Background('beige', 'beige'))
  assert emoji_edits.scene_label(moved) != emoji_edits.scene_label(one)
  assert emoji_edits.objects_label(moved) == emoji_edits.objects_label(one)


def test_a_painted_thing_may_look_natural():
  assert emoji_edits.tells_apart(CAT, 'red', NATURAL)
  assert not emoji_edits.tells_apart(CAT, 'orange', NATURAL)  # cats are orange
  assert not emoji_edits.tells_apart(CAT, 'red', 'red')
  assert emoji_edits.tells_apart(BANANA, 'orange', 'yellow')  # both natural, and not the same


def answer(scene, question):
  """Answers a question from the scene's own facts."""
  items = {name: i for i in scene.items for name in (singular(i.concept), plural(i.concept))}
  if found := re.fullmatch(r'How many (.*) are there\?', question):
    item = items[found[1]]
    word = ('one', 'two', 'three')[item.count - 1]
    return f'{word} {singular(item.concept) if item.count == 1 else plural(item.concept)}'
  if found := re.fullmatch(r'What colour (is|are) the (.*)\?', question):
    return f'the {found[2]} {found[1]} {items[found[2]].colour}'
  if found := re.fullmatch(r'Where is the (.*)\?', question):
    place = position_word(*items[found[1]].centres[0])
    where = {'left': 'on the left', 'right': 'on the right', 'centre': 'in the centre'}
    return f'the {found[1]} is {where.get(place, f"at the {place}")}'
  phrase = re.fullmatch(r'Is there (.*)\?', question)[1]
  ((label, colour, _),) = mentions(phrase)
  there = any(i.concept.name == label and (colour in (NATURAL, i.colour)) for i in scene.items)
  return f'yes, there is {phrase}' if there else f'no, there is no {phrase.split(" ", 1)[1]}'


@pytest.mark.parametrize('split', SPLITS)
def test_answers_are_right_and_the_others_wrong(split):
  source = open_task('vqa', split, 'size=32&count=120&concepts=12&candidates=20')
  kinds = set()
  for i in range(len(source)):
    plan = source.blueprint(i)
    assert plan.positive.text == answer(plan.query.scene, plan.query.text)
    assert plan.label == plan.positive.text
    assert plan.positive.text not in {s.text for s in plan.hard}
    assert (len(plan.hard) > 0) == (split != 'train')
    kinds.add((plan.query.text.split(' ')[0], plan.positive.text.split(',')[0] == 'yes'))
  assert len(kinds) == 5  # four ways to ask, and yes and no


def test_kinds_of_questions_can_be_chosen():
  source = open_task('vqa', options=f'{SMALL}&kinds=position,colour')
  asked = [source.blueprint(i).query.text.split(' ')[0] for i in range(4)]
  assert asked == ['What', 'Where', 'What', 'Where']


def test_a_composed_query_and_its_change_give_the_result():
  source = open_task('composed', options='count=40&size=32&concepts=30&candidates=8')
  for i in range(40):
    plan = source.blueprint(i)
    before, text, after = plan.query.scene, plan.query.text, plan.positive.scene
    said = mentions(text)
    if i % 4 == 0:
      changed = [(a, b) for a, b in zip(before.items, after.items, strict=True) if a != b]
      ((a, b),) = changed
      assert a.concept == b.concept and a.centres == b.centres and text.endswith(b.colour)
    elif i % 4 == 1:
      ((a, b),) = [(a, b) for a, b in zip(before.items, after.items, strict=True) if a != b]
      assert said == [(b.concept.name, b.colour, b.count)] and a.colour == b.colour
      assert text.endswith((singular(a.concept), plural(a.concept)))
    elif i % 4 == 2:
      assert before.items == after.items and before.background != after.background
    else:
      (gone,) = set(before.items) - set(after.items)
      assert text.endswith((singular(gone.concept), plural(gone.concept)))
      assert len(after.items) == len(before.items) - 1
    # what was drawn is what the labels say: the query itself is the first wrong candidate
    assert plan.hard[0].scene == before
    assert emoji_edits.scene_label(before) != plan.label
    assert (pixels(source[i].query) != pixels(source[i].positive)).any()


def test_grounding_cuts_out_what_is_named():
  source = open_task('grounding')
  for i in range(12):
    plan, record = source.blueprint(i), source[i]
    ((label, colour, _),) = mentions(plan.query.text.replace('the ', 'a ', 1))
    (item,) = [it for it in plan.query.scene.items if it.concept.name == label]
    assert item.count == 1 and item.colour == colour
    x0, y0, x1, y1 = plan.positive.box
    assert (pixels(record.positive) == pixels(record.query)[y0:y1, x0:x1]).all()
    inside = (item.centres[0][0] * 32, item.centres[0][1] * 32)
    assert x0 <= inside[0] <= x1 and y0 <= inside[1] <= y1
    assert min(x1 - x0, y1 - y0) >= 8


def test_all_tasks_at_once():
  source = open_pairs('emojitasks:all?count=3&size=32')
  assert isinstance(source, PairSource)
  assert [r.task for r in source] == [task for task in TASKS for _ in range(3)]
  assert {t for tasks in META_TASKS.values() for t in tasks} == set(TASKS)
  assert len(open_pairs('emojitasks:vqa,composed?count=3&size=32')) == 6


def test_natural_colours_are_left_unsaid():
  source = open_task('image_to_caption', options=f'{SMALL}&colours=natural')
  assert not any(c in source[i].positive.text for i in range(8) for c in PALETTE)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('emojitasks:vqa2', "no task 'vqa2'; did you mean 'vqa'"),
    ('emojitasks:vqa?split=extra', "split='extra'"),
    ('emojitasks:vqa?size=8', 'size=8 is no whole number from 32 to 256'),
    ('emojitasks:vqa?kinds=number', "unknown kinds 'number'"),
    ('emojitasks:vqa?colours=rad', "did you mean 'red'"),
    ('emojitasks:vqa?colour=red', "unknown option 'colour'"),
    ('emojitasks:vqa?concepts=3', 'too few for 3 objects'),
    ('emojitasks:vqa?split=compositions&colours=natural', 'no held-out compositions'),
  ],
)
def test_bad_options(spec, message):
  with pytest.raises(UserError, match=message):
    open_pairs(spec)


def test_a_world_that_is_too_small_says_so():
  with pytest.raises(UserError, match='none of 200 scenes fits'):
    open_task('vqa', options=f'{SMALL}&kinds=colour&colours=natural')[0]
  few = 'size=32&concepts=4&max_objects=1&colours=red&candidates=100'
  with pytest.raises(UserError, match='of 100 candidates'):
    open_task('image_to_caption', options=few)[0]
