"""Runs of a model that answers: resumed bit for bit, started from a LLaVA's folder, refused."""

import numpy as np
import pytest

from align_jax.answerer import load_answerer, load_llava
from align_jax.config import build
from align_jax.data.chat import train_chat
from align_jax.data.pair_record import Content
from align_jax.data.transforms import Transform
from align_jax.errors import UserError
from align_jax.interop.track import multimodal_track
from align_jax.interop.write import write_llava
from align_jax.models.multimodal import MultimodalConfig
from align_jax.objectives import make_objective
from align_jax.open_embedder import open_embedder
from align_jax.tower_embedder import load_embedder
from align_jax.train import loop
from align_jax.train.checkpoints import load_params
from align_jax.train.init import make_config
from align_jax.train.loop import train
from align_jax.train.metrics import read_metrics
from tests import tiny

pytest.importorskip('resvg_py')

MODEL = {
  **tiny.MULTIMODAL,
  'image': {**tiny.MULTIMODAL['image'], 'depth': 1},
  'decoder': {**tiny.MULTIMODAL['decoder'], 'depth': 1},
  'length': 48,
}
SCENES = 'emoji:scenes?size=32&concepts=12&max_objects=1&count=40&captions=short'


def values(**changes):
  data = {'text': 'questions', 'length': 48, 'vocab_size': 300}
  changes = {**changes, 'data': {**data, **changes.get('data', {})}}
  model = changes.pop('model', MODEL)
  made = tiny.config_values(SCENES, steps=4, batch_size=8, **changes)
  return {**made, 'objective': tiny.CAPTION, 'model': model}


def run(folder, **changes):
  config = make_config(values(**changes))
  return train(config, make_objective(config.objective), folder)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp('answering')
  run(folder)
  return folder


def equal(a, b):
  return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_run_cut_off_ends_as_if_it_never_was(base, tmp_path, monkeypatch):
  class Cut(Exception):
    pass

  real_put, steps = loop.put_batch, 0

  def put(batch, mesh):
    nonlocal steps
    steps += 1
    if steps == 4:
      raise Cut
    return real_put(batch, mesh)

  monkeypatch.setattr(loop, 'put_batch', put)
  with pytest.raises(Cut):
    run(tmp_path)
  assert equal(run(tmp_path), load_params(base))
  assert {'token_accuracy', 'answer_accuracy'} <= read_metrics(tmp_path)[-1].keys()


def test_a_run_answers(base):
  answerer = load_answerer(base)
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
  questions = ['What is in the picture?', 'How many cats are there?', 'Is there a cat?']
  texts = answerer.answer(images, questions, most=5)
  for i, text in enumerate(texts):  # none depends on what it is asked with
    assert answerer.answer(images[i : i + 1], questions[i : i + 1], most=5) == [text]
  first = answerer.logits(images, questions)[1]
  for row, text in zip(first, texts, strict=True):
    token = answerer.chat.decode(np.asarray([[row[-1].argmax()]]))[0]
    assert text.startswith(token)
  with pytest.raises(UserError, match='3 images, 1 questions'):
    answerer.answer(images, questions[:1])


def test_starts_from_a_folder_of_a_llava_and_its_template(tmp_path):
  texts = ['What is in the picture? a red cat', 'How many dogs are there? two']
  chat = train_chat(texts, 290, 16)
  model = build(MultimodalConfig, MODEL)
  _, skeleton = tiny.method(tiny.CAPTION, MODEL)
  rng = np.random.default_rng(0)
  params = {n: rng.normal(0, 0.2, p.shape).astype(np.float32) for n, p in skeleton.shapes.items()}
  folder = tmp_path / 'llava'
  folder.mkdir()
  shapes = {n: p.shape for n, p in params.items()}
  track = multimodal_track(model, 'real', params.__getitem__, shapes)
  write_llava(folder, model, track, chat, Transform(32))
  changes = {
    'model': {'init': f'hf:{folder}', 'length': 48},
    'optimizer': {'lr': 1e-9, 'warmup_steps': 1},
  }
  after = run(tmp_path / 'run', **changes)
  for name, value in after.items():
    np.testing.assert_allclose(value, params[name], atol=1e-6, err_msg=name)
  answerer, theirs = load_answerer(tmp_path / 'run'), load_llava(str(folder), 48)
  assert answerer.chat.vocab_size == chat.vocab_size
  images = np.zeros((2, 32, 32, 3), np.uint8)
  asked = ['What?', 'How many dogs are there?']
  assert answerer.answer(images, asked, most=6) == theirs.answer(images, asked, most=6)
  # and as embedders
  picture = tiny.png(tiny.picture('red', 'disc', 0))
  contents = [Content('two dogs'), Content('', (picture,)), Content('red?', (picture,))]
  ours = load_embedder(tmp_path / 'run', 'hierarchical')
  found = open_embedder(f'hf:{folder}')
  assert found.level == 'hierarchical'
  np.testing.assert_allclose(found(contents, 'query'), ours(contents, 'query'), atol=1e-5)
  with pytest.raises(UserError, match='has no steps'):
    open_embedder(f'hf:{folder}', step=3)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'data': {'text': 'plain'}},
      r"config\.data\.text: 'plain', but .* reads 'captions' or",
    ),
    ({'data': {'flip': True}}, r"config\.data\.text: 'questions' ask for places"),
    ({'data': {'length': 50}}, r'config\.data\.length: 50, but config\.model\.length is 48'),
    ({'data': {'length': 20}}, r'config\.data\.length: 20, but an image, the chat template'),
    (
      {'model': {**MODEL, 'image_id': 3}},
      r'config\.model\.image_id: 3, but 1 in the tokenizer',
    ),
  ],
)
def test_what_does_not_fit_is_said_before_it_starts(changes, message, tmp_path):
  with pytest.raises(UserError, match=message):
    run(tmp_path / 'run', **changes)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_towers_read_no_chats(tmp_path):
  config = make_config(tiny.config_values(SCENES, data={'text': 'captions'}))
  with pytest.raises(UserError, match=r"config\.data\.text: 'captions', but .* reads 'plain'"):
    train(config, make_objective(config.objective), tmp_path / 'run')


def gmail_run(folder, scenes):
  """Towers whose generated track has adapters that are not zero."""
  changes = {
    'model': {**tiny.MODEL, 'image': MODEL['image'], **tiny.TRACKS},
    'objective': {**tiny.GMAIL, 'pair_weight': 0.0, 'text_weight': 1.0},
    'optimizer': {'lr': 1e-2, 'warmup_steps': 1},
  }
  changes['data'] = {'generated': scenes}
  config = make_config(tiny.config_values(steps=2, batch_size=8, **changes))
  return train(config, make_objective(config.objective), folder)


def test_a_captioner_learns_from_generated_images_through_the_aligned_track(tmp_path):
  """GMAIL's second stage: tower and adapters are those of the aligned run, and stay."""
  scenes = f'{SCENES}&modality=generated'
  towers = gmail_run(tmp_path / 'gmail', scenes)
  lora = [n for n in towers if n.startswith('image/') and 'lora' in n.split('/')]
  assert any(np.any(towers[n]) for n in lora if n.endswith('/b'))
  made = values(data={'real': '', 'generated': scenes, 'text': 'captions'})
  lock = ('image', 'image_lora')
  made['objective'] = {'name': 'caption', 'route': 'modality', 'lock': lock}
  made['model'] = {**MODEL, 'init': f'run:{tmp_path / "gmail"}', 'image_lora': {}}
  config = make_config(made)
  # rank and scale, which the config leaves open, are those of the run
  assert config.model['image_lora'] == {'rank': 2, 'alpha': 2.0, 'layers': ['attention', 'mlp']}
  after = train(config, make_objective(config.objective), tmp_path / 'captioner')
  shared = {n for n in after if n.startswith('image/')}
  assert set(lora) <= shared
  assert all(np.array_equal(after[n], towers[n]) for n in shared)
  answerer = load_answerer(tmp_path / 'captioner')
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
  real, generated = (answerer.logits(images, ['?', '?'], m)[1] for m in ('real', 'generated'))
  assert np.abs(np.subtract(real[0], generated[0])).max() > 1e-4
  made['model'] = {**made['model'], 'init': ''}
  made['model']['image_lora'] = {'rank': 2}
  config = make_config(made)
  with pytest.raises(UserError, match=r'config\.objective\.lock: image_lora, but .* no adapters'):
    train(config, make_objective(config.objective), tmp_path / 'inert')
  made['model'] |= {'init': f'run:{tmp_path / "gmail"}', 'image_lora': {'alpha': 4.0}}
  with pytest.raises(UserError, match=r'config\.model\.image_lora\.alpha: 4\.0, but 2\.0 in'):
    make_config(made)
