"""A server on loopback that speaks the chat completion protocol, with faults as asked for."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = 'sk-secret-0123456789'


class Server(ThreadingHTTPServer):
  """Answers with what `script` holds, one entry a request, the last again and again.

  An entry is a text (the answer), an int (an HTTP status), a dict (the whole JSON body), bytes (the
  raw body), or a function of the handler.
  """

  daemon_threads = True

  def __init__(self, *script):
    super().__init__(('127.0.0.1', 0), Handler)
    self.script = list(script)
    self.requests: list[dict] = []
    self.lock = threading.Lock()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_address[1]}/v1'


class Handler(BaseHTTPRequestHandler):
  server: Server

  def do_POST(self) -> None:
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    with self.server.lock:
      self.server.requests.append({'path': self.path, 'body': body})
      script = self.server.script
      entry = script.pop(0) if len(script) > 1 else script[0]
    if self.headers['Authorization'] != f'Bearer {KEY}':
      return self.send(401, b'{"error": "wrong key"}')
    if callable(entry):
      return entry(self)
    if isinstance(entry, int):
      said = f'{{"error": "refused, your key is {KEY}"}}'
      return self.send(entry, said.encode(), {'Retry-After': '7'} if entry == 429 else {})
    if isinstance(entry, bytes):
      return self.send(200, entry)
    if isinstance(entry, str):
      entry = {
        'choices': [{'message': {'role': 'assistant', 'content': entry}}],
        'usage': {'prompt_tokens': 100, 'completion_tokens': 20},
      }
    return self.send(200, json.dumps(entry).encode())

  def send(self, status: int, body: bytes, headers: dict | None = None) -> None:
    self.send_response(status)
    for name, value in {'Content-Length': str(len(body)), **(headers or {})}.items():
      self.send_header(name, value)
    self.end_headers()
    with contextlib.suppress(OSError):  # who was too late is gone
      self.wfile.write(body)

  def log_message(self, *args) -> None:
    """Says nothing."""


@contextlib.contextmanager
def serve(monkeypatch, *script: str | int | dict | bytes | Callable) -> Iterator[Server]:
  """Runs a server, and points the environment at it."""
  server = Server(*script)
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
  thread.start()
  monkeypatch.setenv('OPENAI_BASE_URL', server.url)
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
