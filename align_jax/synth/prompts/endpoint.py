"""An OpenAI-compatible endpoint: `POST BASE/chat/completions`, retries, nothing leaked."""

import dataclasses
import datetime
import email.utils
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_jax.errors import UserError, require
from align_jax.synth.prompts.answers import usage_of

_MOST = 1 << 20  # bytes of a reply: prompts are far shorter
_LONGEST_WAIT = 60.0  # seconds; a server that asks for more is not waited for
_SECRET = 8  # characters: a shorter key (`EMPTY`, `none`) is no secret, and may be a word
_OURS = ('messages', 'model', 'n', 'stream')  # fields that the config leaves alone
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a language model said, and what it cost.

  Attributes:
    text: of the answer.
    asked, answered: tokens; None if it was not said.
    lost: tries before it that broke off, and may have been billed all the same.
  """

  text: str
  asked: int | None = None
  answered: int | None = None
  lost: int = 0


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
  """Where the model is.

  Attributes:
    model: its name there.
    url_variable: environment variable that holds the base URL, like https://host/v1.
    key_variable: environment variable that holds the key; '' for a server that wants none.
    timeout: seconds for one reply.
    retries: after the first try, on a reply that a later try may mend.
    backoff: seconds before the first retry; doubled for each further one. `Retry-After` is obeyed;
      a server that asks for more than a minute is not asked again.
    fields: of the request, beside or in place of ours; None leaves one out that the server refuses:
      `{'max_tokens': None, 'max_completion_tokens': 2048}`.
  """

  model: str = ''
  url_variable: str = 'OPENAI_BASE_URL'
  key_variable: str = 'OPENAI_API_KEY'
  timeout: float = 60.0
  retries: int = 5
  backoff: float = 1.0
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    where = 'config.prompts.llm.endpoint'
    require(self.timeout > 0, f'{where}.timeout', f'{self.timeout} must be above 0 seconds')
    require(self.retries >= 0, f'{where}.retries', f'{self.retries} is below 0')
    require(self.backoff >= 0, f'{where}.backoff', f'{self.backoff} is below 0 seconds')
    for name in self.fields:
      require(name not in _OURS, f'{where}.fields.{name}', 'cannot be set; leave it out')


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
    self._url = _read_url(config.url_variable)
    self._key = os.environ.get(config.key_variable, '').strip() if config.key_variable else ''
    if not all('!' <= character <= '~' for character in self._key):
      raise UserError(
        f'environment variable {config.key_variable}: holds blanks or letters that no key has; '
        'set it to the key alone'
      )
    if config.key_variable and not self._key:
      raise UserError(
        f'environment variable {config.key_variable}: not set; it holds the key of the server '
        '(config.prompts.llm.endpoint.key_variable = "" for a server that wants none)'
      )
    fields = json.dumps(dict(config.fields), sort_keys=True) if config.fields else ''
    self.name = f'{self._url} {config.model} {fields}'.strip()
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
      **self._config.fields,
    }
    body = {name: value for name, value in body.items() if value is not None}
    wait, lost, tries = self._config.backoff, 0, 0
    while True:
      tries += 1
      asked_for = None
      try:
        return dataclasses.replace(self._ask(body), lost=lost)
      except urllib.error.HTTPError as error:
        with error:
          why = self._refusal(error)
        asked_for = _retry_after(error.headers.get('Retry-After', ''))
      except (OSError, http.client.HTTPException) as error:  # no connection, cut off, too late
        why = f'{type(error).__name__}: {error}'
        lost += not isinstance(error, urllib.error.URLError)  # which comes before the question
      except _Garbage as error:
        why = str(error)
        lost += 1
      if asked_for is not None:
        wait = asked_for
      if wait > _LONGEST_WAIT:
        why += f', and it wants {wait:.0f} s until the next try'
      if tries > self._config.retries or wait > _LONGEST_WAIT:
        break
      self._sleep(wait)
      wait = min(2 * wait, _LONGEST_WAIT)
    raise UserError(
      f'{self._url}: no answer after {tries} {"try" if tries == 1 else "tries"} '
      f'({self._hide(why)}); run the same command again later: what was answered is kept'
    )

  def _ask(self, body: dict[str, Any]) -> Answer:
    headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
    if self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method='POST')
    end = time.monotonic() + self._config.timeout
    data = b''
    with self._open(request, timeout=self._config.timeout) as reply:
      while block := reply.read1(1 << 16):  # what is there: a reply may come in drop by drop
        data += block
        if len(data) > _MOST:
          raise _Garbage(f'a reply of more than {_MOST:,} bytes')
        if time.monotonic() > end:
          raise _Garbage(f'a reply that takes longer than {self._config.timeout:g} s')
    try:
      values = json.loads(data)
      text = values['choices'][0]['message']['content']
    except (ValueError, LookupError, TypeError, RecursionError) as error:
      raise _Garbage(f'a reply that is no chat completion ({type(error).__name__})') from error
    if not isinstance(text, str):
      raise _Garbage('a reply without text')
    return Answer(self._hide(text), *usage_of(values))

  def _refusal(self, error: urllib.error.HTTPError) -> str:
    """Says why the server refused; raises if another try would be refused as well."""
    if error.code in (401, 403):
      raise UserError(
        f'{self._url}: refuses the key ({error.code}); check environment variable '
        f'{self._config.key_variable}'
      ) from None
    if error.code in _AGAIN:
      return f'{error.code} {error.reason}'
    try:
      said = error.read(2000).decode('utf-8', 'replace')
    except (OSError, http.client.HTTPException):
      said = ''
    said = self._hide(f'{error.code} {error.reason}: {said}')
    raise UserError(f'{self._url}: {" ".join(said.split())[:300]}') from None

  def _hide(self, text: str) -> str:
    """A server may repeat the key in what it says."""
    return text.replace(self._key, '…') if len(self._key) >= _SECRET else text


class _Garbage(Exception):
  """A reply that is none."""


def _read_url(variable: str) -> str:
  """Returns where to ask, from the base URL in an environment variable."""
  url = os.environ.get(variable, '').strip().rstrip('/')
  try:
    parts = urllib.parse.urlsplit(url)
    good = parts.scheme in ('http', 'https') and bool(parts.hostname) and parts.port != 0
    secret = parts.username is not None or parts.query != '' or parts.fragment != ''
  except ValueError:
    good = secret = False
  if not good or not url.isascii() or not url.isprintable() or ' ' in url:
    raise UserError(
      f'environment variable {variable}: set it to the base URL of an OpenAI-compatible server, '
      'like https://HOST/v1'
    )
  if secret:  # it is named in messages, and in the answers that are kept
    raise UserError(
      f'environment variable {variable}: holds a user, password or query; set it to '
      'https://HOST/v1, and the key in a variable of its own'
    )
  return f'{url}/chat/completions'


def _retry_after(text: str) -> float | None:
  """Returns the seconds that a `Retry-After` asks for, which says them or a date; None for none.

  Source: RFC 9110, section 10.2.3.
  """
  try:
    seconds = float(text)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(text)
    except ValueError:
      return None
    if date.tzinfo is None:
      date = date.replace(tzinfo=datetime.UTC)
    seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
  return seconds if math.isfinite(seconds) and seconds > 0 else None
