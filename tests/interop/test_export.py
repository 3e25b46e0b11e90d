"""From a folder to a run and back to a folder, tracks and adapters included, against PyTorch."""

import json
from pathlib import Path

import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file

from align_jax.config import build
from align_jax.data.sources import open_source
from align_jax.encoder import load_run
from align_jax.errors import UserError
from align_jax.interop import clip
from align_jax.interop.track import Track, plain_config
from align_jax.interop.verify import check_with_table
from align_jax.interop.write import write_model
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.objectives import make_objective
from align_jax.train.checkpoints import load_params
from align_jax.train.init import make_config
from align_jax.train.loop import train
from align_jax.train.reader import ParamReader
from align_jax.train.run_config import read_run_config
from tests import tiny
from tests.interop.tools import ONCE, OPENAI, command


def exported(run: Path, output: Path, *arguments: str) -> Path:
  done = command(f'--checkpoint={run}', f'--output={output}', *arguments)
  assert done.returncode == 0, done.stderr
  return output


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  return f'folder:{tiny.photo_folder(tmp_path_factory.mktemp("photos"))}'


@pytest.fixture(scope='module')
def base(photos, tmp_path_factory):
  """A run of OpenAI's architecture, and the folder it is exported to."""
  folder = tmp_path_factory.mktemp('base')
  config = make_config(tiny.config_values(photos, model=OPENAI, optimizer={'lr': 1e-2}, **ONCE))
  train(config, make_objective(config.objective), folder / 'run')
  return exported(folder / 'run', folder / 'clip', '--verify=table')


@pytest.fixture(scope='module')
def aligned(base, photos, tmp_path_factory):
  """A run aligned from the exported folder."""
  folder = tmp_path_factory.mktemp('aligned')
  source = open_source(photos)
  spec = tiny.generated_shards(folder / 'shards', [source[i] for i in range(len(source))])
  values = tiny.config_values(
    photos,
    objective=tiny.GMAIL,
    optimizer={'lr': 3e-2},
    data={'generated': spec, 'length': None},
    **ONCE,
  )
  values['model'] = {'init': f'hf:{base}', **tiny.TRACKS}
  config = make_config(values)
  train(config, make_objective(config.objective), folder / 'run')
  return folder / 'run'


def test_in_and_out_gives_the_same_tensors_bit_for_bit(base, aligned, tmp_path):
  out = exported(aligned, tmp_path / 'real')
  before, after = (load_file(folder / 'model.safetensors') for folder in (base, out))
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[name], after[name]) for name in before)
  assert (out / 'tokenizer.json').read_bytes() == (base / 'tokenizer.json').read_bytes()
  for name in ('config.json', 'preprocessor_config.json'):
    assert json.loads((out / name).read_bytes()) == json.loads((base / name).read_bytes())
  assert 'trust' not in (out / 'README.md').read_text()


def test_the_generated_track_merged_and_as_an_adapter(base, aligned, tmp_path):
  pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  import torch
  from transformers import AutoModel

  merged = exported(aligned, tmp_path / 'merged', '--track=generated')
  adapter = exported(aligned, tmp_path / 'adapter', '--track=generated', '--lora=peft')
  kernel = 'vision_model.encoder.layers.0.self_attn.q_proj.weight'
  assert not np.array_equal(
    load_file(merged / 'model.safetensors')[kernel], load_file(base / 'model.safetensors')[kernel]
  )
  pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
  plain = AutoModel.from_pretrained(str(adapter / 'base')).eval()
  with torch.no_grad():
    one = AutoModel.from_pretrained(str(merged)).eval().get_image_features(pixels).pooler_output
    before = plain.get_image_features(pixels).pooler_output
    model = peft.PeftModel.from_pretrained(plain, str(adapter)).get_base_model()
    other = model.get_image_features(pixels).pooler_output
  np.testing.assert_allclose(one, other, atol=1e-5)
  assert float((one - before).abs().max()) > 1e-3


def test_functions_that_need_jax_alone(aligned, tmp_path):
  pytest.importorskip('flatbuffers')
  out = exported(aligned, tmp_path / 'functions', '--track=generated', '--format=stablehlo')
  encoder = load_run(aligned)
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
  loaded = jax_export.deserialize((out / 'image.stablehlo').read_bytes())
  assert set(loaded.platforms) == {'cpu', 'cuda', 'tpu'}
  np.testing.assert_allclose(
    loaded.call(images), encoder.embed_images(images, 'generated'), atol=1e-5
  )
  tokens = encoder.tokenizer.encode(['a red disc', 'blue'], encoder.length)
  loaded = jax_export.deserialize((out / 'text.stablehlo').read_bytes())
  np.testing.assert_allclose(
    loaded.call(tokens), encoder.embed_texts(['a red disc', 'blue']), atol=1e-5
  )


def test_read_one_at_a_time_is_what_is_read_at_once(aligned):
  reader = ParamReader(aligned)
  for name, value in load_params(aligned, averaged=True).items():
    np.testing.assert_array_equal(reader.read(name), value)
    assert reader.shapes[name] == value.shape
  with pytest.raises(UserError, match='holds no checkpoint of step 77'):
    ParamReader(aligned, step=77)


def model_of(run: Path) -> DualEncoderConfig:
  return build(DualEncoderConfig, read_run_config(run).model_fields)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_several_files_and_other_types(aligned, tmp_path, dtype):
  reader, config = ParamReader(aligned), model_of(aligned)
  track = Track(config, 'generated', reader.read, reader.shapes)
  encoder = load_run(aligned)
  plain = plain_config(config, 'generated')
  names = write_model(
    tmp_path,
    plain,
    track,
    encoder.tokenizer,
    encoder.transform,
    12,
    dtype=dtype,
    shard_bytes=20_000,
  )
  files = sorted(tmp_path.glob('*.safetensors'))
  assert len(files) > 3
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_bytes())
  assert sorted(index['weight_map']) == sorted(names)
  check_with_table(tmp_path, track, dtype)
  stored = load_file(files[0])
  assert {str(t.dtype) for t in stored.values()} == {dtype}


def test_what_transformers_cannot_hold_is_refused():
  config = build(DualEncoderConfig, tiny.MODEL)
  with pytest.raises(UserError, match=r"config\.model\.image\.pool: 'mean', but a CLIPModel"):
    clip.write(config)
  siglip_like = {**tiny.MODEL, 'image': {**tiny.MODEL['image'], 'pool': 'map'}, 'dim': 32}
  tracks = build(DualEncoderConfig, {**siglip_like, **tiny.TRACKS, 'image_projection': False})
  with pytest.raises(UserError, match="train with projection='single'"):
    plain_config(tracks, 'generated')


def test_mistakes_are_one_line(aligned, tmp_path):
  (tmp_path / 'there').mkdir()
  for arguments, said in [
    ((f'--output={tmp_path / "there"}',), 'exists; name a new folder'),
    ((f'--output={tmp_path / "x"}', '--lora=peft'), 'add --track=generated'),
    ((f'--output={tmp_path / "x"}', '--scores=nothing.json'), '--scores: nothing.json cannot be'),
  ]:
    done = command(f'--checkpoint={aligned}', *arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
  assert not (tmp_path / 'x').exists()
