"""What a server may do to us, and what we must not do to it: keys, waits, limits."""

import datetime
import email.utils
import json
import time

import pytest

from align_jax.errors import UserError
from align_jax.synth.prompts.endpoint import Endpoint, EndpointConfig
from align_jax.synth.prompts.llm import Asker, LlmConfig
from align_jax.synth.prompts.make import PromptConfig, make_prompts
from align_jax.synth.rows import Category
from tests.synth.llm_server import KEY, serve

CAT = Category('cat')
SERVER = EndpointConfig('some-model', timeout=5.0, retries=2, backoff=0.25)


def answers(prompts, **usage) -> dict:
  reply = {'choices': [{'message': {'content': json.dumps(prompts)}}]}
  return reply | ({'usage': usage} if usage else {})


def asker(tmp_path, endpoint=SERVER, **changes) -> Asker:
  waits: list[float] = []
  config = LlmConfig(endpoint=endpoint, **changes)
  out = Asker(config, tmp_path / 'answers', Endpoint(endpoint, waits.append))
  out.waits = waits
  return out


@pytest.mark.parametrize('key', ['sk-secret\nX: y', 'sk-sécret-1234', 'sk secret 1234', ' \n'])
def test_a_key_that_is_none_is_not_shown(monkeypatch, key):
  with serve(monkeypatch, answers(['a cat'])) as server:
    monkeypatch.setenv('OPENAI_API_KEY', key)
    with pytest.raises(UserError, match='OPENAI_API_KEY') as found:
      Endpoint(SERVER)
    assert key.strip() not in str(found.value) or not key.strip()
    # one that was read from a file ends with a line
    monkeypatch.setenv('OPENAI_API_KEY', f'{KEY}\n')
    assert Endpoint(SERVER).complete([], temperature=1.0, max_tokens=9, seed=0).text
  assert len(server.requests) == 1


def test_a_password_in_the_url_is_refused(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  for url in ('https://me:hidden@host/v1', 'https://host:99999/v1', 'https:///v1'):
    monkeypatch.setenv('OPENAI_BASE_URL', url)
    with pytest.raises(UserError, match='OPENAI_BASE_URL') as found:
      Endpoint(SERVER)
    assert 'hidden' not in str(found.value)


def test_an_answer_that_repeats_the_key_keeps_it_nowhere(tmp_path, monkeypatch):
  with serve(monkeypatch, answers([f'a cat named {KEY}', 'a red cat'])):
    prompts, _ = asker(tmp_path).prompts(CAT, 2, 0)
  assert len(prompts) == 2 and KEY not in ''.join(prompts)
  (file,) = (tmp_path / 'answers').iterdir()
  assert KEY not in file.read_text()


def test_a_reason_that_repeats_the_key_is_not_said(tmp_path, monkeypatch):
  def refuse(handler) -> None:
    handler.send_response(400, f'no {KEY}')
    handler.send_header('Content-Length', '50')  # and cut off
    handler.end_headers()
    handler.close_connection = True

  with serve(monkeypatch, refuse), pytest.raises(UserError, match='400') as found:
    asker(tmp_path).prompts(CAT, 2, 0)
  assert KEY not in str(found.value)


def later(seconds: float):
  """Refuses with a date; servers may say seconds or a date."""

  def refuse(handler) -> None:
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    date = email.utils.format_datetime(when, usegmt=True)
    handler.send(503, b'', {'Retry-After': date})

  return refuse


def test_a_date_to_wait_for_is_read(tmp_path, monkeypatch):
  with serve(monkeypatch, later(30), later(-30), answers(['a cat', 'a red cat'])):
    ask = asker(tmp_path)
    assert len(ask.prompts(CAT, 1, 0)[0]) == 1
  assert ask.waits[0] == pytest.approx(30, abs=3) and ask.waits[1] == 2 * ask.waits[0]


def test_a_server_that_wants_a_long_wait_is_not_pestered(tmp_path, monkeypatch):
  with serve(monkeypatch, later(4000)) as server:
    ask = asker(tmp_path)
    with pytest.raises(UserError, match=r'after 1 try .*wants \d+ s'):
      ask.prompts(CAT, 1, 0)
  assert len(server.requests) == 1 and not ask.waits


def test_a_reply_that_drips_in_is_too_late(tmp_path, monkeypatch):
  def drip(handler) -> None:
    handler.send_response(200)
    handler.send_header('Content-Length', '1000')
    handler.end_headers()
    for _ in range(40):
      try:
        handler.wfile.write(b' ')
        handler.wfile.flush()
      except OSError:
        return
      time.sleep(0.05)

  endpoint = EndpointConfig('some-model', timeout=0.3, retries=0)
  start = time.monotonic()
  with serve(monkeypatch, drip), pytest.raises(UserError, match=r'longer than 0\.3 s'):
    asker(tmp_path, endpoint).prompts(CAT, 1, 0)
  assert time.monotonic() - start < 1.5


def test_fields_that_a_server_refuses_or_wants(tmp_path, monkeypatch):
  fields = {'max_tokens': None, 'seed': None, 'max_completion_tokens': 9, 'reasoning': {'a': 1}}
  endpoint = EndpointConfig('some-model', fields=fields)
  with serve(monkeypatch, answers(['a cat'])) as server:
    asker(tmp_path, endpoint).prompts(CAT, 1, 0)
    asker(tmp_path).prompts(CAT, 1, 0)  # another question
  first, second = (r['body'] for r in server.requests)
  assert first.keys() ^ second.keys() == fields.keys()
  assert first['reasoning'] == {'a': 1} and first['temperature'] == second['temperature']
  for name in ('messages', 'model', 'stream', 'n'):
    with pytest.raises(UserError, match=f'fields.{name}'):
      EndpointConfig('some-model', fields={name: 1})


@pytest.mark.parametrize(
  'usage', [{}, {'prompt_tokens': -900, 'completion_tokens': True}, {'prompt_tokens': 'many'}]
)
def test_a_server_that_counts_no_tokens_reaches_the_limit_too(tmp_path, monkeypatch, usage):
  with serve(monkeypatch, answers(['a red cat'], **usage)) as server:
    ask = asker(tmp_path, max_tokens=100, max_total_tokens=1500, rounds=50)
    _, notes = ask.prompts(CAT, 9, 0)
  assert 'the limit of 1,500 tokens is reached' in notes
  assert 0 < len(server.requests) < 6 and 0 < ask.tokens <= 1500


def test_what_broke_off_may_have_been_billed(tmp_path, monkeypatch):
  with serve(monkeypatch, b'garbage', answers(['a cat'], prompt_tokens=10, completion_tokens=5)):
    ask = asker(tmp_path, max_tokens=100)
    ask.prompts(CAT, 1, 0)
  assert ask.tokens > 15 + 100
  again = asker(tmp_path, max_tokens=100)  # from the file
  again._model.name = json.loads(next((tmp_path / 'answers').iterdir()).read_text())['question'][
    'model'
  ]
  again.prompts(CAT, 1, 0)
  assert again.tokens == ask.tokens


def test_a_limit_is_kept_by_many_categories_and_decides_the_same_again(tmp_path, monkeypatch):
  def slow(handler) -> None:
    time.sleep(0.02)
    name = handler.server.requests[-1]['body']['messages'][1]['content'].split('single ')[1]
    reply = answers([f'a red {name.split(".")[0]}'], prompt_tokens=150, completion_tokens=50)
    handler.send(200, json.dumps(reply).encode())

  categories = [Category(f'thing{i}') for i in range(12)]
  limits = {'max_tokens': 60, 'max_total_tokens': 1700, 'parallel': 6}
  config = PromptConfig(
    per_category=1,
    strategies={'llm': 1.0, 'template': 1e-9},
    llm=LlmConfig(endpoint=SERVER, **limits),
  )
  with serve(monkeypatch, slow) as server:
    ask = asker(tmp_path, **limits)
    rows, _ = make_prompts(config, categories, None, seed=0, cache=tmp_path, asker=ask)
    asked = len(server.requests)
    assert 0 < asked < 12 and ask.tokens <= 1700
    assert {r.strategy for r in rows[:asked]} == {'llm'}
    assert {r.strategy for r in rows[-3:]} == {'template'}
    other = asker(tmp_path, **limits)
    again, _ = make_prompts(config, categories, None, seed=0, cache=tmp_path, asker=other)
    assert again == rows and len(server.requests) == asked
