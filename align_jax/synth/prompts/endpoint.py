"""An OpenAI-compatible endpoint: `POST BASE/chat/completions`, retries, nothing leaked."""

import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from align_jax.errors import UserError, require
from align_jax.synth.prompts.answers import usage_of

_MOST = 1 << 20  # bytes of a reply: prompts are far shorter
_LONGEST_WAIT = 60.0  # seconds; a server that asks for more is not waited for
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a language model said, and what it cost.

  Attributes:
    text: of the answer.
    asked, answered: tokens.
  """

  text: str
  asked: int = 0
  answered: int = 0


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """Where the model is.

  Attributes:
    model: its name there.
    url_variable: environment variable that holds the base URL, like https://host/v1.
    key_variable: environment variable that holds the key; '' for a server that wants none.
    timeout: seconds for one reply.
    retries: after the first try, on a reply that a later try may mend.
    backoff: seconds before the first retry; doubled for each further one. `Retry-After` is obeyed.
  """

  model: str = ''
  url_variable: str = 'OPENAI_BASE_URL'
  key_variable: str = 'OPENAI_API_KEY'
  timeout: float = 60.0
  retries: int = 5
  backoff: float = 1.0

  def __post_init__(self) -> None:
    where = 'config.prompts.llm.endpoint'
    require(self.timeout > 0, f'{where}.timeout', f'{self.timeout} must be above 0 seconds')
    require(self.retries >= 0, f'{where}.retries', f'{self.retries} is below 0')
    require(self.backoff >= 0, f'{where}.backoff', f'{self.backoff} is below 0 seconds')


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """Follows nothing: the key would be sent along."""

  def redirect_request(self, *args: Any, **kwargs: Any) -> None:
    return None


class Endpoint:
  """Answers by way of a server.

  Attributes:
    name: tells it from another model, without the key.
  """

  def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep):
    """Reads URL and key from the environment.

    Raises:
      UserError: a variable is not set, or holds no URL.
    """
    self._config, self._sleep = config, sleep
    require(bool(config.model), 'config.prompts.llm.endpoint.model', 'name the model')
    url = os.environ.get(config.url_variable, '').rstrip('/')
    if not url.startswith(('http://', 'https://')):
      raise UserError(
        f'environment variable {config.url_variable}: set it to the base URL of an '
        'OpenAI-compatible server, like https://HOST/v1'
      )
    self._key = os.environ.get(config.key_variable, '') if config.key_variable else ''
    if config.key_variable and not self._key:
      raise UserError(
        f'environment variable {config.key_variable}: not set; it holds the key of the server '
        '(config.prompts.llm.endpoint.key_variable = "" for a server that wants none)'
      )
    self._url = f'{url}/chat/completions'
    self.name = f'{self._url} {config.model}'
    self._open = urllib.request.build_opener(_NoRedirect).open

  def complete(
    self, messages: Sequence[dict[str, str]], *, temperature: float, max_tokens: int, seed: int
  ) -> Answer:
    """Asks once, and again where that may help.

    Raises:
      UserError: a refused key, a request that the server does not understand, or no usable reply
        after the last retry.
    """
    body = {
      'model': self._config.model,
      'messages': list(messages),
      'temperature': temperature,
      'max_tokens': max_tokens,
      'seed': seed,
    }
    wait = self._config.backoff
    why = ''
    for attempt in range(self._config.retries + 1):
      if attempt:
        self._sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)
      try:
        return self._ask(body)
      except urllib.error.HTTPError as error:
        with error:
          why = self._refusal(error)
        asked_for = error.headers.get('Retry-After', '')
        if asked_for.isdigit():
          wait = min(float(asked_for), _LONGEST_WAIT)
      except (OSError, http.client.HTTPException) as error:  # no connection, cut off, too late
        why = f'{type(error).__name__}: {error}'
      except _Garbage as error:
        why = str(error)
    raise UserError(
      f'{self._url}: no answer after {self._config.retries + 1} tries ({self._hide(why)}); run the '
      'same command again later: what was answered is kept'
    )

  def _ask(self, body: dict[str, Any]) -> Answer:
    headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
    if self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method='POST')
    with self._open(request, timeout=self._config.timeout) as reply:
      data = reply.read(_MOST + 1)
    if len(data) > _MOST:
      raise _Garbage(f'a reply of more than {_MOST:,} bytes')
    try:
      values = json.loads(data)
      text = values['choices'][0]['message']['content']
    except (ValueError, LookupError, TypeError, RecursionError) as error:
      raise _Garbage(f'a reply that is no chat completion ({type(error).__name__})') from error
    if not isinstance(text, str):
      raise _Garbage('a reply without text')
    return Answer(text, *usage_of(values))

  def _refusal(self, error: urllib.error.HTTPError) -> str:
    """Says why the server refused; raises if another try would be refused as well."""
    if error.code in (401, 403):
      raise UserError(
        f'{self._url}: refuses the key ({error.code}); check environment variable '
        f'{self._config.key_variable}'
      ) from None
    if error.code in _AGAIN:
      return f'{error.code} {error.reason}'
    said = self._hide(error.read(2000).decode('utf-8', 'replace'))
    raise UserError(f'{self._url}: {error.code} {error.reason}: {" ".join(said.split())[:300]}')

  def _hide(self, text: str) -> str:
    """A server may repeat the key in what it says."""
    return text.replace(self._key, '…') if self._key else text


class _Garbage(Exception):
  """A reply that is none."""
