"""A reverse proxy on loopback before the storage emulator: counts requests and makes them fail.

It also adds what the emulator lacks and TensorStore needs: the generation of an object in the
header of its download, and the conditions on it.
"""

import http.client
import http.server
import json
import threading
import urllib.parse


class Faults:
  """What goes wrong, and what was asked for.

  Attributes:
    every: so many requests are one 503; 0: none is. Of the same request never two in a row: which
      of several clients is refused is chance, and no client outlasts a store that picks on it.
    cut: so many of the next downloads end in the middle of their body.
    down: connections are closed without an answer.
    seen: (method, path, query) of every request.
    failed: how many were made to fail.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self.clear()

  def clear(self) -> None:
    self.every, self.cut, self.down = 0, 0, False
    self.seen: list[tuple[str, str, str]] = []
    self._refused: set[tuple[str, str]] = set()
    self.failed = 0

  def judge(self, method: str, path: str, query: str) -> str:
    """Says what becomes of a request: '', 'down', '503' or 'cut'."""
    with self._lock:
      self.seen.append((method, path, query))
      fate = ''
      if self.down:
        fate = 'down'
      elif self.every and len(self.seen) % self.every == 0 and (method, path) not in self._refused:
        fate = '503'
      elif self.cut and method == 'GET' and 'alt=media' in query:
        self.cut -= 1
        fate = 'cut'
      (self._refused.add if fate == '503' else self._refused.discard)((method, path))
      self.failed += bool(fate)
      return fate

  def downloads(self, suffix: str = '') -> list[str]:
    """The names of the objects whose bytes were asked for, in order."""
    names = [
      urllib.parse.unquote(path.rpartition('/o/')[2])
      for method, path, query in self.seen
      if method == 'GET' and '/o/' in path and 'alt=media' in query
    ]
    return [name for name in names if name.endswith(suffix)]


class Proxy(http.server.ThreadingHTTPServer):
  """Serves on a free port of loopback until closed."""

  daemon_threads = True

  def __init__(self, port: int):
    """`port`: of the emulator."""
    super().__init__(('127.0.0.1', 0), _Handler)
    self.upstream = port
    self.turn = threading.Lock()  # the emulator answers one request at a time
    self.faults = Faults()
    self.url = f'http://127.0.0.1:{self.server_address[1]}'
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def handle_error(self, request, client_address) -> None:
    """A client that hangs up is none of our business."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Proxy

  def _relay(self) -> None:
    path, _, query = self.path.partition('?')
    body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    fate = self.server.faults.judge(self.command, path, query)
    if fate == 'down':
      self.close_connection = True
      return
    if fate == '503':
      error = {'error': {'code': 503, 'message': 'the store is busy'}}
      self._answer(503, {'Content-Type': 'application/json'}, json.dumps(error).encode())
      return
    condition = dict(urllib.parse.parse_qsl(query)).get('ifGenerationMatch')
    if condition is not None and condition != self._generation(path, query):
      error = {'error': {'code': 412, 'message': 'the condition does not hold'}}
      self._answer(412, {'Content-Type': 'application/json'}, json.dumps(error).encode())
      return
    status, headers, data = self._ask(self.command, self.path, body, dict(self.headers))
    if self.command == 'GET' and 'alt=media' in query and status in (200, 206):
      headers['x-goog-generation'] = self._generation(path, query)
    self._answer(status, headers, data, cut=fate == 'cut')

  do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _relay

  def _ask(self, method, path, body=b'', headers=None) -> tuple[int, dict[str, str], bytes]:
    with self.server.turn:
      connection = http.client.HTTPConnection('127.0.0.1', self.server.upstream, timeout=60)
      try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
      finally:
        connection.close()

  def _generation(self, path: str, query: str) -> str:
    """The generation of the object that a request is about, '0' if there is none."""
    if path.endswith('/o'):  # an upload names its object in the query
      name = urllib.parse.quote(dict(urllib.parse.parse_qsl(query)).get('name', ''), safe='')
      path = f'{path.removeprefix("/upload")}/{name}'
    status, _, data = self._ask('GET', path.removeprefix('/download'))
    return json.loads(data)['generation'] if status == 200 else '0'

  def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut=False) -> None:
    self.send_response_only(status)
    for name, value in headers.items():
      if name.lower() not in ('content-length', 'connection', 'transfer-encoding'):
        self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
      self.wfile.flush()
      self.close_connection = True

  def log_message(self, *arguments) -> None:
    """Says nothing."""
