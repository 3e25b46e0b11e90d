"""The real mteb judges a track on files of this machine, and finds our figures."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from align_jax.api import TrackEncoder
from align_jax.config import build
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.encoder import Encoder
from align_jax.errors import UserError
from align_jax.evaluation.features import Features
from align_jax.evaluation.retrieval import (
  image_to_text_ranks,
  retrieve,
  text_to_image_ranks,
)
from align_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from align_jax.models.flat import Skeleton
from tests import tiny
from tests.models.tiny import perturbed

mteb = pytest.importorskip('mteb')
from align_jax.mteb_encoder import MtebEncoder  # noqa: E402

LENGTH = 96
KS = (1, 5, 10)
TRACKS = ('real', 'generated')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Scenes as a user has them: pictures in a folder, a line of JSON for each."""
  folder = tmp_path_factory.mktemp('files')
  source = open_source('emoji:scenes?size=32&split=test&count=60')
  lines = []
  for number in range(len(source)):
    (folder / f'{number:03d}.png').write_bytes(source[number].image)
    caption = max(source[number].captions, key=len)
    lines.append(json.dumps({'file': f'{number:03d}.png', 'caption': caption}))
  (folder / 'captions.jsonl').write_text('\n'.join(lines))
  return folder


@pytest.fixture(scope='module')
def encoder(files):
  """Two tracks with random weights; they begin as equals, so the second one is moved."""
  captions = [line['caption'] for line in read(files)]
  tokenizer = train_tokenizer(captions, 300)
  text = {**tiny.MODEL['text'], 'length': LENGTH, 'causal': True, 'pool': 'eot'}
  text |= {'eot_id': tokenizer.eot_id, 'pad_id': tokenizer.pad_id}
  config = build(DualEncoderConfig, {**tiny.MODEL, **tiny.TRACKS, 'text': text}, 'config.model')
  skeleton = Skeleton(lambda rngs: DualEncoder(config, rngs))
  params = skeleton.init(jax.random.key(0))
  params |= perturbed(skeleton.bind(params), 'lora', 'generated_projection')
  return Encoder(config, params, tokenizer, Transform(image_size=32, mode='eval'), LENGTH)


def read(folder):
  return [json.loads(line) for line in (folder / 'captions.jsonl').read_text().splitlines()]


def make_task(folder, kind: str):
  """Retrieval of mteb over the files: `t2i` finds images by texts, `i2t` texts by images."""
  from datasets import Dataset
  from mteb.abstasks.retrieval import AbsTaskRetrieval
  from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
  from mteb.abstasks.task_metadata import TaskMetadata

  class Scenes(AbsTaskRetrieval):
    metadata = TaskMetadata(
      name=f'Scenes{kind.upper()}',
      description='Scenes in a folder.',
      dataset={'path': str(folder), 'revision': '1'},
      type='Any2AnyRetrieval',
      category=kind,
      modalities=['text', 'image'],
      eval_splits=['test'],
      eval_langs=['eng-Latn'],
      main_score='ndcg_at_10',
    )

    def load_data(self, num_proc=None, **kwargs):
      lines = read(folder)
      names = [line['file'] for line in lines]
      images = Dataset.from_dict(
        {'id': names, 'image': [Image.open(folder / name).convert('RGB') for name in names]}
      )
      texts = Dataset.from_dict({'id': names, 'text': [line['caption'] for line in lines]})
      queries, corpus = (texts, images) if kind == 't2i' else (images, texts)
      right = {name: {name: 1} for name in names}
      split = RetrievalSplitData(
        queries=queries, corpus=corpus, relevant_docs=right, top_ranked=None
      )
      self.dataset = {'default': {'test': split}}
      self.data_loaded = True

  return Scenes()


def evaluate(loaded: TrackEncoder, folder) -> dict[str, float]:
  """Our own figures: recalls, and from the ranks what NDCG is where one candidate is right."""
  lines = read(folder)
  features = Features(
    ids=[line['file'] for line in lines],
    labels=[()] * len(lines),
    modality=['real'] * len(lines),
    pair_ids=[''] * len(lines),
    image=loaded.embed_images([folder / line['file'] for line in lines]),
    text=loaded.embed_texts([line['caption'] for line in lines]),
    text_owner=np.arange(len(lines)),
    texts=[line['caption'] for line in lines],
  )
  out = retrieve(features, ks=KS, same_caption=False)
  ranks = {
    't2i': text_to_image_ranks(features, same_caption=False),
    'i2t': image_to_text_ranks(features, same_caption=False),
  }
  for kind, rank in ranks.items():
    for k in KS:
      out[f'{kind}.ndcg{k}'] = float(np.mean((rank <= k) / np.log2(1 + rank)))
  return out


def test_the_tracks_differ(files, encoder):
  # or the next test could not tell which of them mteb was given
  real, generated = (evaluate(TrackEncoder(encoder, track), files) for track in TRACKS)
  assert real['t2i.ndcg10'] != pytest.approx(generated['t2i.ndcg10'], abs=1e-3)
  assert real['i2t.ndcg10'] != pytest.approx(generated['i2t.ndcg10'], abs=1e-3)


@pytest.mark.parametrize('track', TRACKS)
def test_mteb_finds_the_figures_of_our_own_evaluation(files, encoder, track):
  loaded = TrackEncoder(encoder, track)
  ours = evaluate(loaded, files)
  tasks = [make_task(files, kind) for kind in ('t2i', 'i2t')]
  results = mteb.evaluate(
    MtebEncoder(loaded, name='tests/scenes', revision=track),
    tasks,
    cache=None,
    co2_tracker=False,
    show_progress_bar=False,
    encode_kwargs={'batch_size': 16},
  )
  found = {}
  for kind, result in zip(('t2i', 'i2t'), results.task_results, strict=True):
    (scores,) = result.scores['test']
    found |= {f'{kind}.r{k}': scores[f'recall_at_{k}'] for k in KS}
    found |= {f'{kind}.ndcg{k}': scores[f'ndcg_at_{k}'] for k in KS}
  # mteb rounds to five places
  assert found == pytest.approx({name: ours[name] for name in found}, rel=0, abs=6e-6)
  assert 0 < found['t2i.r10'] < 1 and 0 < found['i2t.r10'] < 1


def test_small_batches_cost_no_more_and_keep_their_order(encoder, monkeypatch):
  sizes = []
  embed = encoder.embed_images

  def counted(pixels, *arguments):
    sizes.append(len(pixels))
    return embed(pixels, *arguments)

  monkeypatch.setattr(encoder, 'embed_images', counted)
  loaded = TrackEncoder(encoder, 'generated')
  pictures = [tiny.picture('red', 'disc', seed) for seed in range(300)]
  batches = [{'image': pictures[at : at + 32], 'id': ['']} for at in range(0, 300, 32)]
  found = MtebEncoder(loaded, name='tests/scenes').encode(batches)
  assert sizes == [256, 44]
  np.testing.assert_allclose(found, loaded.embed_images(pictures), atol=1e-6)


def test_batches_of_several_kinds_are_not_mixed(encoder):
  wrapped = MtebEncoder(TrackEncoder(encoder, 'real'), name='tests/scenes')
  batches = [
    {'text': ['a red disc', 'a blue square']},
    {'image': [tiny.picture('red', 'disc', 0)]},
    {'text': ['a green disc'], 'image': [tiny.picture('green', 'disc', 1)]},
  ]
  found = wrapped.encode(batches)
  want = np.concatenate([wrapped.encode([batch]) for batch in batches])
  assert found.shape == (4, 16)
  np.testing.assert_allclose(found, want, atol=1e-6)


def test_nothing_to_embed_and_a_bad_picture_are_named(encoder):
  wrapped = MtebEncoder(TrackEncoder(encoder, 'real'), name='tests/scenes')
  with pytest.raises(UserError, match='nothing to embed'):
    wrapped.encode([])
  good = tiny.picture('red', 'disc', 0)
  with pytest.raises(UserError, match='image 3: an array of float'):
    wrapped.encode([{'image': [good, good]}, {'image': [good, np.zeros((4, 4, 3))]}])


def test_a_missing_mteb_is_named(monkeypatch):
  monkeypatch.delitem(sys.modules, 'align_jax.mteb_encoder')
  monkeypatch.setitem(sys.modules, 'mteb.models.abs_encoder', None)
  with pytest.raises(UserError, match=r"mteb.* is missing; pip install 'align_jax\[mteb\]'"):
    importlib.import_module('align_jax.mteb_encoder')


def test_images_and_texts_together_are_the_sum_of_both(encoder):
  wrapped = MtebEncoder(TrackEncoder(encoder, 'real'), name='tests/scenes')
  pictures = [tiny.picture('red', 'disc', seed) for seed in range(3)]
  texts = ['a red disc', 'a blue square', 'a green disc']
  image, text, both = (
    wrapped.encode([batch])
    for batch in ({'image': pictures}, {'text': texts}, {'image': pictures, 'text': texts})
  )
  assert both.dtype == np.float32
  want = image + text
  np.testing.assert_allclose(both, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)
  with pytest.raises(UserError, match='a batch of audio'):
    wrapped.encode([{'audio': [0]}])


def test_says_what_it_is(encoder):
  meta = MtebEncoder(TrackEncoder(encoder, 'real'), name='me/model').mteb_model_meta
  assert set(meta.modalities) == {'text', 'image'} and meta.framework == ['JAX']
  assert (meta.embed_dim, meta.max_tokens) == (16, LENGTH)
  with pytest.raises(UserError, match='OWNER/NAME'):
    MtebEncoder(TrackEncoder(encoder, 'real'), name='model')
