"""What an answer is worth, against the ground truth told in other ways."""

import numpy as np
import pytest

from align_jax.data.images import decode_image
from align_jax.data.questions import Question, questions, things_in
from align_jax.data.record import Record
from align_jax.data.sources import open_source
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.evaluation.answers import (
  answer_scores,
  ask_all,
  iou,
  judge,
  parse_box,
  parse_caption,
)

pytest.importorskip('resvg_py')

SCENES = 'emoji:scenes?size=32&concepts=340&max_objects=3&count=150&split=test'


@pytest.fixture(scope='module')
def source():
  return open_source(SCENES)


class Writer:
  """Knows the answers, or says something else."""

  transform = Transform(32)

  def __init__(self, source, say=lambda answer: answer):
    things = things_in(source)
    self.known = {}
    for record in (source[i] for i in range(len(source))):
      answers = {q.question: say(q.answer) for q in questions(record, things)}
      self.known[decode_image(record.image).tobytes()] = answers
    self.batches = []

  def answer(self, images, questions):
    self.batches.append(len(images))
    pairs = zip(images, questions, strict=True)
    return [self.known[image.tobytes()][question] for image, question in pairs]


def test_who_knows_everything_is_always_right(source):
  asked = ask_all(Writer(source, lambda a: f' {a.upper()}. '), source)
  scores = answer_scores(asked)
  assert scores.pop('answers.asked') == len(asked) > 1000
  assert set(scores) == {
    'answers.mean',
    *(f'answers.{k}' for k in ('caption', 'count', 'colour', 'position', 'existence', 'grounding')),
    *(f'answers.caption.{k}' for k in ('objects', 'colours', 'counts')),
    'answers.grounding.iou',
  }
  assert all(value == 1 for value in scores.values()), scores


def test_who_knows_nothing_is_never_right(source):
  scores = answer_scores(ask_all(Writer(source, lambda a: 'who knows'), source, limit=20))
  assert scores.pop('answers.asked') > 100
  assert not any(scores.values())
  yes = Writer(source, lambda a: 'yes')
  scores = answer_scores(ask_all(yes, source, kinds=('existence',), limit=100))
  assert set(scores) == {'answers.existence', 'answers.mean', 'answers.asked'}
  assert 0.4 < scores['answers.existence'] < 0.6
  assert max(yes.batches) <= 128


def test_captions_are_read_as_their_scenes_are(source):
  for i in range(len(source)):
    record = source[i]
    wanted = {o['label']: (o['colour'], o['count']) for o in record.truth['objects']}
    for caption in record.captions:
      assert parse_caption(caption) == wanted, caption


def test_captions_are_worth_what_they_name():
  truth = {
    'objects': (
      {'label': 'cat', 'colour': 'red', 'count': 2},
      {'label': 'teddy bear', 'colour': 'natural', 'count': 1},
    )
  }
  record = Record(id='a', image=b'', truth=truth)
  question = Question('caption', '?', 'two red cats and a teddy bear')

  def scores(said):
    return list(judge(record, question, said).values())  # exact, objects, colours, counts

  assert scores('Two red cats and a teddy bear.') == [1, 1, 1, 1]
  assert scores('a teddy bear and two red cats') == [0, 1, 1, 1]
  assert scores('a red cat and a blue teddy bear') == [0, 1, 0.5, 0.5]
  assert scores('two red cats and a bear') == [0, 0, 0.5, 0.5]
  assert scores('two red cats, a teddy bear and a dog') == [0, 0, 1, 1]
  assert scores('') == [0, 0, 0, 0]


def test_boxes_overlap_as_their_pixels_do():
  rng = np.random.default_rng(0)
  for _ in range(50):
    boxes = np.sort(rng.integers(0, 30, (2, 2, 2)), axis=1)  # box, corner, axis
    masks = np.zeros((2, 30, 30), bool)
    for mask, ((x0, y0), (x1, y1)) in zip(masks, boxes, strict=True):
      mask[y0:y1, x0:x1] = True
    union = (masks[0] | masks[1]).sum()
    wanted = (masks[0] & masks[1]).sum() / union if union else 0
    got = iou(*(tuple(int(x) for x in box.ravel()) for box in boxes))
    assert got == pytest.approx(wanted)
  assert parse_box('[5, 10, 30, 40]') == (5, 10, 30, 40)
  assert parse_box('5 10 30') is None
  assert iou(None, (0, 0, 1, 1)) == 0
  assert judge(Record('a', b''), Question('grounding', '', '00 00 50 50'), '00 00 50 25')[''] == 1
  assert judge(Record('a', b''), Question('grounding', '', '00 00 50 50'), '00 00 50 24')[''] == 0


def test_a_source_without_questions(tmp_path):
  class Bare:
    spec, licence = 'memory:', ''

    def __len__(self):
      return 1

    def __getitem__(self, index):
      return Record(id='a', image=open_source(SCENES)[0].image)

  with pytest.raises(UserError, match='no record of memory: has a question with an answer'):
    ask_all(Writer(open_source(SCENES)), Bare())
