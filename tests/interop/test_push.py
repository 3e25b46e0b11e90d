"""Folders go to a hub and come from it: every byte, nothing unasked for, mistakes in one line."""

import numpy as np
import pytest

import align_jax
from align_jax.data.pair_record import Content
from align_jax.errors import UserError
from align_jax.interop.push import check_push, push_folder
from align_jax.objectives import make_objective
from align_jax.open_embedder import open_embedder
from align_jax.train.init import make_config
from align_jax.train.loop import train
from tests import tiny
from tests.interop import hub_stub
from tests.interop.hub_stub import TOKEN
from tests.interop.tools import ONCE, OPENAI, command


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  photos = f'folder:{tiny.photo_folder(tmp_path_factory.mktemp("photos"))}'
  values = tiny.config_values(photos, model=OPENAI, steps=2, **ONCE)
  config = make_config(values)
  train(config, make_objective(config.objective), folder)
  return folder


@pytest.fixture(scope='module')
def pushed(run, tmp_path_factory):
  """A hub, the folder that was exported and pushed to it, and what the command said."""
  output = tmp_path_factory.mktemp('export') / 'model'
  with hub_stub.serve() as hub:
    # two arguments more than a user needs: the hub's address, and no Xet, which the stub lacks
    done = command(
      f'--checkpoint={run}',
      f'--output={output}',
      '--verify=table',
      '--push=me/model',
      HF_ENDPOINT=hub.address,
      HF_HUB_DISABLE_XET='1',
      HF_HUB_OFFLINE='0',
      HF_TOKEN=TOKEN,
    )
    assert done.returncode == 0, done.stderr
    yield hub, output, done


@pytest.fixture
def client(monkeypatch, tmp_path):
  """Points this process's huggingface_hub at an address."""
  import huggingface_hub
  from huggingface_hub import constants

  def point(address: str, token: str = TOKEN) -> None:
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    files = address + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', files)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token here'))
    monkeypatch.setenv('HF_TOKEN', token)
    # a client that refuses the network while offline is kept; forget it
    huggingface_hub.close_session()

  yield point
  huggingface_hub.close_session()


def test_every_file_arrives_byte_for_byte(pushed):
  hub, output, done = pushed
  assert hub.repositories['me/model'] == {
    str(path.relative_to(output)): path.read_bytes() for path in output.rglob('*') if path.is_file()
  }
  assert 'pushed to me/model' in done.stdout and 'model.safetensors' in done.stdout
  assert TOKEN not in done.stdout + done.stderr
  given = {g for m, p, g in hub.requests if m in ('POST', 'PUT') and not p.startswith('/lfs/')}
  assert given == {f'Bearer {TOKEN}'}


def test_pushing_again_replaces_what_changed(pushed, client, tmp_path):
  hub, output, _ = pushed
  before = dict(hub.repositories['me/model'])
  client(hub.address)
  for file in before:
    (tmp_path / 'again' / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'again' / file).write_bytes((output / file).read_bytes())
  (tmp_path / 'again/README.md').write_text('# Another card\n')
  push_folder(tmp_path / 'again', 'me/model', dry_run=False)
  after = dict(hub.repositories['me/model'])
  hub.repositories['me/model'] = before
  assert after == {**before, 'README.md': b'# Another card\n'}


def test_a_dry_run_asks_the_hub_nothing(pushed, client):
  hub, output, _ = pushed
  client(hub.address)
  asked = len(hub.requests)
  check_push('me/model', dry_run=True)
  lines = push_folder(output, 'me/model', dry_run=True)
  assert len(hub.requests) == asked
  assert sorted(line.split()[0] for line in lines) == sorted(hub.repositories['me/model'])


@pytest.mark.parametrize(
  ('status', 'where'), [(401, '/create'), (403, '/commit/main'), (500, '/create')]
)
def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(pushed, client, status, where):
  hub, output, _ = pushed
  client(hub.address)
  hub.fault = lambda method, path: status if path.endswith(where) else None
  held = sorted(output.rglob('*'))
  try:
    with pytest.raises(UserError, match=f'^--push=me/other: the hub did not take it .*{status}'):
      push_folder(output, 'me/other', dry_run=False)
  finally:
    hub.fault = lambda method, path: None
  assert sorted(output.rglob('*')) == held


def test_no_hub_there_and_no_token_and_no_repository(pushed, client):
  _, output, _ = pushed
  client('http://127.0.0.1:9')  # the discard port: nobody listens
  with pytest.raises(UserError, match='hf upload me/model') as raised:
    push_folder(output, 'me/model', dry_run=False)
  assert TOKEN not in str(raised.value) and '\n' not in str(raised.value)
  client('http://127.0.0.1:9', token='')
  with pytest.raises(UserError, match='no token; set HF_TOKEN'):
    check_push('me/model', dry_run=False)
  with pytest.raises(UserError, match='no repository; write OWNER/NAME'):
    check_push('model', dry_run=False)


def test_a_model_comes_from_the_hub_without_its_other_files(pushed, client):
  hub, output, _ = pushed
  client(hub.address)
  hub.repositories['me/mixed'] = {
    **hub.repositories['me/model'],
    'pytorch_model.bin': b'pickled',
    'modeling_clip.py': b'raise SystemExit',
  }
  there = align_jax.load('hf:me/mixed')
  here = align_jax.load(f'hf:{output}')
  asked = {path.rsplit('/', 1)[-1] for path in hub.asked('GET', 'HEAD') if '/resolve/' in path}
  assert 'model.safetensors' in asked and 'config.json' in asked
  assert not asked & {'pytorch_model.bin', 'modeling_clip.py'}
  texts = ['a red circle', 'two blue stars']
  np.testing.assert_array_equal(there.embed_texts(texts), here.embed_texts(texts))
  contents = [Content(text) for text in texts]
  vectors = open_embedder('hf:me/mixed')(contents, 'query')
  np.testing.assert_allclose(vectors, here.embed_texts(texts), atol=1e-6)
  with pytest.raises(UserError, match='a dual encoder has no prompt'):
    open_embedder('hf:me/mixed', 'user')


def test_what_the_hub_cannot_give_is_said(pushed, client):
  hub, _, _ = pushed
  client(hub.address)
  hub.repositories['me/pickled'] = {
    path: data
    for path, data in hub.repositories['me/model'].items()
    if not path.endswith('.safetensors')
  } | {'pytorch_model.bin': b'pickled'}
  with pytest.raises(UserError, match=r'hf:me/nothing.*RepositoryNotFoundError.*name the folder'):
    align_jax.load('hf:me/nothing')
  with pytest.raises(UserError, match=r'holds no model\.safetensors'):
    align_jax.load('hf:me/pickled')
  client('http://127.0.0.1:9')
  with pytest.raises(UserError, match=r'hf:me/model.*download it elsewhere'):
    align_jax.load('hf:me/model')
