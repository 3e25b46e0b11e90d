"""An independent judge: PyTorch alone reads the exported folder and finds the figures we report."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from align_jax.data.record import Record
from align_jax.data.shards import write_shards
from align_jax.data.sources import open_source
from align_jax.encoder import load_run
from align_jax.evaluation.features import embed_source
from align_jax.evaluation.retrieval import retrieve
from align_jax.objectives import make_objective
from align_jax.train.init import make_config
from align_jax.train.loop import train
from tests import tiny
from tests.interop.tools import ONCE, OPENAI, command

torch = pytest.importorskip('torch')

SCENES = 'emoji:scenes?size=32'
HELD_OUT = f'{SCENES}&split=test&count=240'
KS = (1, 5, 10)
# whole captions: those cut short to the same words would tie, and ties are counted differently
LENGTH = 96
MODEL = {**OPENAI, 'text': {**OPENAI['text'], 'length': LENGTH}}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A model that has learnt something of scenes, then a second track of it that differs."""
  folder = tmp_path_factory.mktemp('judged')
  real = f'{SCENES}&count=320'
  values = tiny.config_values(
    real, model=MODEL, steps=60, optimizer={'lr': 3e-3}, batch_size=64, **ONCE
  )
  values['data'] |= {'length': LENGTH}
  base = make_config(values)
  train(base, make_objective(base.objective), folder / 'base')
  source = open_source(real)
  write_shards(
    [washed_out(source[i]) for i in range(64)], str(folder / 'shards'), 2, 'CC0', 'tests'
  )
  values |= {'steps': 12, 'objective': tiny.GMAIL, 'optimizer': {'lr': 3e-2, 'warmup_steps': 1}}
  values['data'] |= {'generated': f'arrayrecord:{folder}/shards/*.arrayrecord'}
  values['model'] = {**MODEL, **tiny.TRACKS, 'init': f'run:{folder / "base"}'}
  aligned = make_config(values)
  train(aligned, make_objective(aligned.objective), folder / 'aligned')
  return folder / 'aligned'


def washed_out(record: Record) -> Record:
  """The picture of a scene as a poor generator would draw it."""
  picture = Image.open(io.BytesIO(record.image)).convert('RGB')
  pale = Image.blend(picture.resize((12, 12)).resize(picture.size), Image.new('RGB', (32, 32)), 0.4)
  return Record(
    id=f'pale-{record.id}',
    image=tiny.png(pale),
    captions=record.captions,
    modality='generated',
    pair_id=record.id,
    generator_id='tiny',
    prompt=record.captions[0],
  )


def held_out() -> list[Record]:
  source = open_source(HELD_OUT)
  return [source[i] for i in range(len(source))]


def reported(run: Path, output: Path) -> dict[str, float]:
  """What `align_jax.evaluate` says."""
  program = [sys.executable, '-m', 'align_jax.evaluate', '--tasks=retrieval']
  program += [f'--checkpoint={run}', f'--data={HELD_OUT}', f'--output={output}']
  done = subprocess.run(program, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return json.loads(output.read_text())['scores']


def recall_at_k(scores, positive, k: int) -> float:
  """Share of the rows with a positive column among their k best, as clip-benchmark counts it."""
  best = scores.topk(k, dim=1).indices
  return float(positive.gather(1, best).any(dim=1).float().mean())


def judged(folder: Path, records: list[Record]) -> dict[str, float]:
  """Retrieval by the exported folder's own model, tokenizer and image processor."""
  from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

  model = AutoModel.from_pretrained(str(folder)).eval()
  tokenizer = AutoTokenizer.from_pretrained(str(folder))
  processor = AutoImageProcessor.from_pretrained(str(folder))
  pictures = [Image.open(io.BytesIO(record.image)).convert('RGB') for record in records]
  texts = [caption for record in records for caption in record.captions]
  distinct = list(dict.fromkeys(texts))

  def embed(words: list[str]):
    length = model.config.text_config.max_position_embeddings
    given = tokenizer(
      words, padding='max_length', truncation=True, max_length=length, return_tensors='pt'
    )
    return torch.nn.functional.normalize(model.get_text_features(**given).pooler_output)

  with torch.no_grad():
    pixels = processor(pictures, return_tensors='pt')
    image = torch.nn.functional.normalize(model.get_image_features(**pixels).pooler_output)
    text, names = embed(texts), embed(distinct)

  def right(captions: list[str]):
    return torch.tensor(
      [[caption in record.captions for record in records] for caption in captions]
    )

  out = {f't2i.r{k}': recall_at_k(text @ image.T, right(texts), k) for k in KS}
  out |= {f'i2t.r{k}': recall_at_k(image @ names.T, right(distinct).T, k) for k in KS}
  return out


def export(run: Path, folder: Path, track: str) -> Path:
  done = command(f'--checkpoint={run}', f'--output={folder}', f'--track={track}')
  assert done.returncode == 0, done.stderr
  return folder


def test_pytorch_finds_what_evaluate_reports(run, tmp_path):
  found = judged(export(run, tmp_path / 'out', 'real'), held_out())
  ours = reported(run, tmp_path / 'scores.json')
  assert found == pytest.approx({k: ours[f'retrieval.{k}'] for k in found}, abs=1e-3)
  # far from chance (10 of 240) and from all: figures that could differ
  assert 0.08 < found['t2i.r10'] < 0.95


def test_pytorch_finds_the_same_of_the_generated_track(run, tmp_path):
  found = judged(export(run, tmp_path / 'out', 'generated'), held_out())
  features = embed_source(load_run(run), open_source(HELD_OUT), modality='generated')
  ours = retrieve(features, ks=KS)
  assert found == pytest.approx({k: ours[k] for k in found}, abs=1e-3)
