"""The resolved values of every config, so that no change of one goes unseen.

After a change that is meant: `make golden`, and look at the diff.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from align_jax.config import build
from align_jax.data.chat import train_chat
from align_jax.data.tokenizer import train_tokenizer
from align_jax.data.transforms import Transform
from align_jax.embedding_study.config import EmbeddingStudyConfig
from align_jax.interop.clip import write
from align_jax.interop.track import multimodal_track
from align_jax.interop.write import write_llava
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.models.flat import Skeleton
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from align_jax.objectives import make_objective
from align_jax.study.config import StudyConfig
from align_jax.study.sets import set_config
from align_jax.study.specs import split_specs
from align_jax.synth.config import SynthConfig
from align_jax.train.config import TrainConfig
from align_jax.train.init import make_config
from align_jax.train.run_config import write_run_config
from configs import saha_llava
from configs.clip import get_config as get_clip
from configs.siglip_large import SIZES

FOLDER = Path(__file__).parent / 'configs'
CONFIGS = Path(__file__).parent.parent.parent / 'configs'
NAMES = sorted(p.stem for p in CONFIGS.glob('*.py') if p.stem != '__init__')


def values(name: str) -> dict:
  return importlib.import_module(f'configs.{name}').get_config().to_dict()


def test_every_config_has_its_golden_file_and_no_other(update_golden):
  if update_golden:
    for path in FOLDER.glob('*.json'):
      if path.stem not in NAMES:
        path.unlink()
    return
  assert sorted(p.stem for p in FOLDER.glob('*.json')) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_config_resolves_to_the_golden_values(name, update_golden):
  path = FOLDER / f'{name}.json'
  text = json.dumps(values(name), indent=1, sort_keys=True) + '\n'
  if update_golden:
    FOLDER.mkdir(exist_ok=True)
    path.write_text(text)
  assert path.exists(), 'a new config: `make golden` writes its golden file'
  assert json.loads(text) == json.loads(path.read_text()), 'if the change is meant: `make golden`'


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', ['siglip_large', 'gmail_siglip'])
def test_every_size_builds(name, size):
  config = build(TrainConfig, importlib.import_module(f'configs.{name}').get_config(size).to_dict())
  model = build(make_objective(config.objective).ModelConfig, config.model_fields, 'config.model')
  assert model.image.width % config.mesh.fsdp == model.text.width % config.mesh.fsdp == 0


def clip_folder(folder: Path) -> Path:
  """All but the weights of an exported CLIP."""
  fields = {k: v for k, v in get_clip('openai').model.to_dict().items() if k != 'init'}
  description = write(build(DualEncoderConfig, fields))
  (folder / 'config.json').write_text(json.dumps(description))
  train_tokenizer(['a red disc'], 300).save(folder)
  transform = {'size': {'shortest_edge': 32}, 'crop_size': 32, 'resample': 3}
  (folder / 'preprocessor_config.json').write_text(json.dumps(transform))
  return folder


def llava_folder(folder: Path) -> Path:
  """A LLaVA of SigLIP and Qwen2, smaller than what `saha_llava` is for."""
  values = saha_llava.get_config('qwen2_0b5').model.to_dict()
  values['decoder'] |= {'depth': 1, 'width': 64, 'heads': 1, 'kv_heads': 1, 'mlp_dim': 64}
  values['image'] |= {'depth': 1, 'width': 64, 'heads': 1, 'mlp_dim': 64, 'dtype': 'float32'}
  chat = train_chat(['a red disc'] * 2, 300, 729)
  values['decoder'] |= {'vocab_size': chat.vocab_size, 'lora': None, 'dtype': 'float32'}
  fields = {k: v for k, v in values.items() if k != 'init'}
  model = build(MultimodalConfig, fields | {'image_id': chat.image_id, 'length': 32_768})
  shapes = Skeleton(lambda rngs: Multimodal(model, rngs)).shapes
  params = {name: np.zeros(p.shape, np.float32) for name, p in shapes.items()}
  track = multimodal_track(
    model, 'real', params.__getitem__, {n: p.shape for n, p in shapes.items()}
  )
  write_llava(folder, model, track, chat, Transform(384))
  return folder


def test_the_sizes_of_a_llava_build():
  config = make_config(saha_llava.get_config('qwen2_0b5').to_dict())
  model = build(make_objective(config.objective).ModelConfig, config.model_fields, 'config.model')
  assert model.image.patches == 729 and model.length == config.data.length == 1024
  assert model.decoder.width % config.mesh.fsdp == model.image.width % config.mesh.fsdp == 0


@pytest.mark.parametrize('name', NAMES)
def test_config_is_one_that_its_entry_takes(name, tmp_path):
  config = values(name)
  if 'arms' in config:
    study = build(StudyConfig, config)
    for name in study.sets:
      set_config(study, split_specs(study, tmp_path), tmp_path, name)
    return
  if 'levels' in config:
    study = build(EmbeddingStudyConfig, config)
    for level in study.levels:
      study.cell_config(level, 0, 'plan', 'run:base', 'config.training')
    return
  if 'generators' in config:
    build(SynthConfig, config)
    return
  if config['model'].get('image', {}).get('image_size', 0) is None:
    # what it leaves open, a folder decides
    config['model']['init'] = f'hf:{clip_folder(tmp_path)}'
  if name == 'saha_llava':
    config['model']['init'] = f'hf:{llava_folder(tmp_path)}'
  if name == 'saha':  # the same of a run
    write_run_config(make_config(values('multimodal')), tmp_path)
    config['model']['init'] = f'run:{tmp_path}'
  config = make_config(config)
  objective = make_objective(config.objective)
  model = {k: v for k, v in config.model.items() if k != 'init'}
  assert build(objective.ModelConfig, model, 'config.model').image_size
