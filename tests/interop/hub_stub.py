"""A Hugging Face hub on loopback: repositories of models in memory, by the hub's HTTP protocol.

Files travel by git LFS or within the commit, as for a client without Xet (HF_HUB_DISABLE_XET=1).
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_made_up_for_tests'
LARGE = ('.safetensors', '.bin')


class Hub:
  """What the hub holds and what it was asked.

  Attributes:
    address: `http://127.0.0.1:PORT`.
    repositories: files by path, by repository id.
    requests: method, path and Authorization header of all requests so far.
    fault: method and path -> a status to answer with instead, or None.
  """

  def __init__(self, address: str):
    self.address = address
    self.repositories: dict[str, dict[str, bytes]] = {}
    self.requests: list[tuple[str, str, str]] = []
    self.fault: Callable[[str, str], int | None] = lambda method, path: None
    self.large: dict[str, bytes] = {}

  def revision(self, repository: str) -> str:
    """A commit's id: made of what the files hold."""
    digest = hashlib.sha1()
    for path, data in sorted(self.repositories[repository].items()):
      digest.update(path.encode() + b'\0' + data)
    return digest.hexdigest()

  def asked(self, *methods: str) -> list[str]:
    """Paths of the requests by these methods."""
    return [path for method, path, _ in self.requests if method in methods]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
  """Runs a hub until the block ends."""
  server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  hub = Hub(f'http://127.0.0.1:{server.server_address[1]}')
  server.hub = hub  # type: ignore[attr-defined]
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *arguments) -> None:
    """Says nothing."""

  @property
  def hub(self) -> Hub:
    return self.server.hub  # type: ignore[attr-defined]

  def do_GET(self) -> None:
    self._answer(self._read)

  do_HEAD = do_GET

  def do_POST(self) -> None:
    self._answer(self._write)

  do_PUT = do_POST

  def _answer(self, answer: Callable[[str, bytes], None]) -> None:
    path = unquote(urlsplit(self.path).path)
    given = self.headers.get('Authorization', '')
    body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    self.hub.requests.append((self.command, path, given))
    status = self.hub.fault(self.command, path)
    # what was asked of the LFS store carries its permission in the address
    if status is None and answer == self._write and not path.startswith('/lfs/'):
      status = {'': 401, f'Bearer {TOKEN}': None}.get(given, 403)
    if status is not None:
      self._send(status, {'error': f'stub says {status}'})
    else:
      answer(path, body)

  def _send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {'Content-Length': str(len(data)), **(headers or {})}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  def _write(self, path: str, body: bytes) -> None:
    hub = self.hub
    if path.startswith('/lfs/'):
      assert hashlib.sha256(body).hexdigest() == path[5:]
      hub.large[path[5:]] = body
      return self._send(200, {})
    if path == '/api/validate-yaml':
      return self._send(200, {'errors': [], 'warnings': []})
    if path == '/api/repos/create':
      asked = json.loads(body)
      name = f'{asked["organization"]}/{asked["name"]}'
      exists = name in hub.repositories
      hub.repositories.setdefault(name, {})
      return self._send(409 if exists else 200, {'url': f'{hub.address}/{name}'})
    if path.endswith('.git/info/lfs/objects/batch'):
      objects = [
        {**given, 'actions': {'upload': {'href': f'{hub.address}/lfs/{given["oid"]}'}}}
        for given in json.loads(body)['objects']
      ]
      return self._send(200, {'transfer': 'basic', 'objects': objects})
    name, _, action = path.removeprefix('/api/models/').rpartition('/')[0].rpartition('/')
    if name not in hub.repositories:
      return self._missing()
    if action == 'preupload':
      return self._send(200, {'files': [_mode(f['path']) for f in json.loads(body)['files']]})
    assert action == 'commit', path
    for line in map(json.loads, body.splitlines()):
      value = line['value']
      if line['key'] == 'file':
        hub.repositories[name][value['path']] = base64.b64decode(value['content'])
      elif line['key'] == 'lfsFile':
        hub.repositories[name][value['path']] = hub.large[value['oid']]
    commit = hub.revision(name)
    self._send(200, {'commitUrl': f'{hub.address}/{name}/commit/{commit}', 'commitOid': commit})

  def _read(self, path: str, body: bytes) -> None:
    del body
    hub = self.hub
    owner, name, what, *rest = [*path.removeprefix('/api/models/').strip('/').split('/'), '', '']
    repository = f'{owner}/{name}'
    files = hub.repositories.get(repository)
    if files is None:
      return self._missing()
    commit = hub.revision(repository)
    if path.startswith('/api/models/') and what in ('', 'revision'):
      listed = [{'rfilename': file} for file in sorted(files)]
      return self._send(200, {'id': repository, 'sha': commit, 'siblings': listed})
    if path.startswith('/api/models/') and what == 'tree':
      return self._send(200, [_entry(file, data) for file, data in sorted(files.items())])
    file = '/'.join(part for part in rest[1:] if part)
    if what != 'resolve' or file not in files:
      return self._send(404, {}, {'X-Error-Code': 'EntryNotFound'})
    etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
    self._send(200, files[file], {'ETag': etag, 'X-Repo-Commit': commit})

  def _missing(self) -> None:
    self._send(404, {}, {'X-Error-Code': 'RepoNotFound'})


def _mode(path: str) -> dict[str, object]:
  mode = 'lfs' if path.endswith(LARGE) else 'regular'
  return {'path': path, 'uploadMode': mode, 'shouldIgnore': False}


def _entry(path: str, data: bytes) -> dict[str, object]:
  return {'type': 'file', 'path': path, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
