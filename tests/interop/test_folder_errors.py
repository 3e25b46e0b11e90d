"""What is wrong with a folder is said with the tensor, the file and the mend."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from align_jax.errors import UserError
from align_jax.interop.folder import find_folder, load_folder, read_folder
from align_jax.train.init import complete, find_origins, make_config
from tests import tiny
from tests.interop import tools

transformers = pytest.importorskip('transformers')
pytest.importorskip('torch')
TOWER = {
  'hidden_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 32,
}
IMAGE = TOWER | {'image_size': 16, 'patch_size': 8}


@pytest.fixture
def folder(tmp_path):
  config = transformers.CLIPVisionConfig(**IMAGE)
  return tools.save(transformers.CLIPVisionModel(config), tmp_path / 'model')


def change(folder, edit):
  path = folder / 'model.safetensors'
  tensors = load_file(path)
  edit(tensors)
  save_file(tensors, path)


def test_missing_tensor(folder):
  change(folder, lambda t: t.pop(next(n for n in t if n.endswith('fc1.weight'))))
  with pytest.raises(UserError, match=r"model: no tensor '.*fc1\.weight' of shape \(32, 16\)"):
    tools.read(folder)


def test_extra_tensor(folder):
  change(folder, lambda t: t.update(odd=np.zeros(3, np.float32)))
  with pytest.raises(UserError, match=r'model\.safetensors: odd of shape \(3,\) has no place'):
    tools.read(folder)


def test_mis_shaped_tensor(folder):
  def edit(tensors):
    name = next(n for n in tensors if n.endswith('fc1.bias'))
    tensors[name] = np.zeros(5, np.float32)

  change(folder, edit)
  with pytest.raises(
    UserError, match=r'fc1\.bias has shape \(5,\), but config\.json asks for \(32,\)'
  ):
    tools.read(folder)


def test_integer_weights(folder):
  def edit(tensors):
    name = next(n for n in tensors if n.endswith('fc1.bias'))
    tensors[name] = np.zeros(32, np.int32)

  change(folder, edit)
  with pytest.raises(UserError, match=r'fc1\.bias is of type I32'):
    tools.read(folder)


def test_a_file_cut_short(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match=r'model\.safetensors: cannot be read .* copy the file again'):
    tools.read(folder)


def test_pickled_weights_are_never_loaded(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with pytest.raises(UserError, match=r'pickled weights alone, .* safe_serialization'):
    tools.read(folder)


def test_an_index_that_leads_out_of_the_folder(folder):
  index = {'weight_map': {'a': '../model.safetensors'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(UserError, match='is no safetensors file of this folder'):
    tools.read(folder)


def test_unknown_architecture(folder):
  (folder / 'config.json').write_text(json.dumps({'model_type': 'clap'}))
  with pytest.raises(UserError, match="model_type 'clap' is not supported; did you mean 'clip'"):
    read_folder(folder)


def test_no_such_folder(tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    find_folder(str(tmp_path / 'nothing' / 'there'))
  with pytest.raises(UserError, match='the hub did not give it'):
    find_folder('nobody/nothing')  # the tests are offline
  with pytest.raises(UserError, match=r'write run:DIR, .* or hf:DIR_OR_ID'):
    find_origins('pickle:model.bin')


def test_a_stated_field_that_is_another_in_the_folder(folder):
  values = tiny.config_values(model={'init': f'hf:{folder}'})
  with pytest.raises(UserError, match=r'config\.model\.image\.\w+: .* in .*/model; leave it out'):
    complete(values)


def test_a_text_tower_needs_its_tokenizer(tmp_path):
  config = transformers.BertConfig(**TOWER, vocab_size=48)
  tools.save(transformers.BertModel(config), tmp_path)
  values = tiny.config_values(model={})
  values['model'] = {'init': f'hf:{tmp_path}'}
  with pytest.raises(UserError, match=r'config\.data\.tokenizer: empty, and .* has no tokenizer'):
    complete(values)


def test_two_towers_become_one_model(folder, tmp_path):
  bert = transformers.BertConfig(**TOWER, vocab_size=300)
  tools.save(transformers.BertModel(bert), tmp_path / 'bert')
  values = tiny.config_values(data={'tokenizer': 'named'})
  values['model'] = {'init': f'hf:{folder},hf:{tmp_path / "bert"}', 'dim': 24, 'init_scale': None}
  config = make_config(values)
  assert config.model['image']['pool'] == 'cls'
  assert config.model['text']['bert']
  assert 'init_scale' not in config.model
  origins = find_origins(config.model['init'])
  assert [o.imported.architecture.name for o in origins] == ['CLIPVisionModel', 'BertModel']


def test_a_resolution_that_is_stated_is_taken(folder):
  values = tiny.config_values()
  values['model'] = {'init': f'hf:{folder}', 'image': {'image_size': 32, 'dtype': None}, 'dim': 8}
  image = complete(values)['model']['image']
  assert image['image_size'] == 32
  assert 'dtype' not in image


def test_several_files_with_an_index(folder):
  path = folder / 'model.safetensors'
  _, _, whole = tools.read(folder)
  tensors = load_file(path)
  names = sorted(tensors)
  placed = {}
  for number, part in enumerate((names[::2], names[1::2])):
    file = f'model-{number}.safetensors'
    save_file({n: tensors[n] for n in part}, folder / file)
    placed |= dict.fromkeys(part, file)
  path.unlink()
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': placed}))
  _, skeleton, parts = tools.read(folder)
  assert all(np.array_equal(parts[n], whole[n]) for n in whole)
  (folder / 'model-1.safetensors').unlink()
  with pytest.raises(UserError, match=r'model-1\.safetensors: missing, but named in'):
    load_folder(read_folder(folder), skeleton.shapes)
