"""One emulator for all tests of this folder, with the proxy before it that makes requests fail."""

import asyncio
import logging
import os
import socket
import types
import urllib.request

import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

from tests.storage.proxy import Proxy

_SKIP = 'needs gcsfs and gcp-storage-emulator: pip install -e ".[test]"'


@pytest.fixture(scope='session')
def store():
  """The proxy; clients in this process and in its children are pointed at it."""
  pytest.importorskip('gcsfs', reason=_SKIP)
  server = pytest.importorskip('gcp_storage_emulator.server', reason=_SKIP)
  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  logging.getLogger('api').setLevel(logging.CRITICAL)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  emulator = server.create_server('127.0.0.1', port, in_memory=True, default_bucket='bucket')
  emulator.start()
  proxy = Proxy(port)
  places = {
    'STORAGE_EMULATOR_HOST': proxy.url,  # gcsfs and google-cloud-storage
    'TENSORSTORE_GCS_HTTP_URL': proxy.url,
    'GCE_METADATA_ROOT': '127.0.0.1:9',  # TensorStore asks it for credentials: nobody is there
    'NO_GCE_CHECK': 'true',
    'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks Google what kind of bucket it is
  }
  before = {name: os.environ.get(name) for name in places}
  os.environ.update(places)
  yield proxy
  for name, value in before.items():
    if value is None:
      del os.environ[name]
    else:
      os.environ[name] = value
  proxy.shutdown()
  emulator.stop()


@pytest.fixture
def bucket(store, request):
  """A folder of its own in the bucket, as text; no faults at first, nor afterwards."""
  store.faults.clear()
  yield f'gs://bucket/{request.node.name}'.replace('[', '-').replace(']', '')
  store.faults.clear()


@pytest.fixture
def faults(store, bucket):
  return store.faults


@pytest.fixture
def hasty(store, monkeypatch):
  """The clients wait a hundredth of their pauses, so that a lasting fault ends soon."""
  retry = pytest.importorskip('gcsfs.retry')
  quick = types.SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100))
  monkeypatch.setattr(retry, 'asyncio', quick)
  retries = {'max_retries': 6, 'initial_delay': '10ms', 'max_delay': '320ms'}
  for name in ('_BASE_TS_CONTEXT', '_DEFAULT_OCDBT_TS_CONTEXT'):
    monkeypatch.setitem(getattr(tensorstore_utils, name), 'gcs_request_retries', retries)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache folder of its own for every test."""
  monkeypatch.setenv('ALIGN_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def objects(store):
  """Reads past the proxy what the bucket holds below a folder: name -> size."""

  def read(folder: str) -> dict[str, int]:
    import json

    bucket, _, prefix = folder.removeprefix('gs://').partition('/')
    url = f'http://127.0.0.1:{store.upstream}/storage/v1/b/{bucket}/o?prefix={prefix}/'
    items = json.loads(urllib.request.urlopen(url).read()).get('items', [])
    return {item['name'].removeprefix(f'{prefix}/'): int(item['size']) for item in items}

  return read
