import json
import time

import pytest

from align_jax.errors import UserError
from align_jax.synth.prompts.answers import parse
from align_jax.synth.prompts.endpoint import Endpoint, EndpointConfig
from align_jax.synth.prompts.llm import Asker, LlmConfig
from align_jax.synth.prompts.make import PromptConfig, make_prompts
from align_jax.synth.rows import Category
from tests.synth.llm_server import KEY, serve

CAT = Category('cat', 'a small animal')
GOOD = json.dumps([f'a {c} cat in a white background' for c in ('red', 'blue', 'old', 'tiny')])
SERVER = EndpointConfig('some-model', timeout=5.0, retries=2, backoff=0.25)


def asker(tmp_path, endpoint=SERVER, **changes) -> Asker:
  """One whose endpoint sleeps in no time; `waits` says how long it would have slept."""
  config = LlmConfig(endpoint=endpoint, **changes)
  waits: list[float] = []
  out = Asker(config, tmp_path / 'answers', Endpoint(endpoint, waits.append))
  out.waits = waits
  return out


@pytest.mark.parametrize(
  'answer',
  [
    '["a red cat", "a blue cat"]',
    'Sure! Here they are:\n```json\n["a red cat",\n "a blue cat"]\n```',
    '1. a red cat\n2) "a blue cat"\n',
    'Prompts [two]:\n- a red cat\n* a blue cat',
    'As asked [1]: ["a red cat", "a blue cat"]',
    '["a red cat", 7, null, ["x"], "A RED CAT", "a dog", "cat", "a blue cat", "'
    + 'cat ' * 200
    + '"]',
  ],
)
def test_answers_are_read_strictly(answer):
  assert parse(answer, CAT) == ['a red cat', 'a blue cat']


@pytest.mark.parametrize(
  'answer',
  ['', 'I cannot do that.', '{"cat": 1}', '[1, 2]', '[' * (1 << 20), 'a category of cats? no'],
)
def test_garbage_gives_nothing(answer):
  assert parse(answer, CAT) == []


def test_more_than_one_and_names_of_words():
  assert parse('["two cats on grass"]', CAT) == ['two cats on grass']
  assert parse('["a hot-dog on a plate"]', Category('hot dog')) == ['a hot-dog on a plate']
  assert parse('["concatenated strings"]', CAT) == []


def test_it_asks_as_the_protocol_says(tmp_path, monkeypatch):
  with serve(monkeypatch, GOOD) as server:
    ask = asker(tmp_path)
    prompts, notes = ask.prompts(CAT, 3, 7)
    assert prompts == json.loads(GOOD)[:3] and not notes
    (request,) = server.requests
    assert request['path'] == '/v1/chat/completions'
    body = request['body']
    assert body['model'] == 'some-model' and body['seed'] == 7 and body['max_tokens'] == 2048
    system, user = body['messages']
    assert (system['role'], user['role']) == ('system', 'user')
    for words in ('Write 3 different', 'cat (a small animal)', 'in a white background'):
      assert words in user['content']
    assert ask.tokens == 120
    # answers are kept: asking again costs nothing, and gives the same
    again = asker(tmp_path)
    assert again.prompts(CAT, 3, 7)[0] == prompts and len(server.requests) == 1
    assert again.tokens == 120
  for file in (tmp_path / 'answers').iterdir():
    assert KEY not in file.read_text()


def test_too_few_are_asked_for_again_with_what_is_there(tmp_path, monkeypatch):
  more = '["a green cat", "a red cat in a white background"]'
  with serve(monkeypatch, GOOD, 'no', more) as server:
    prompts, notes = asker(tmp_path).prompts(CAT, 5, 0)
  assert prompts == [*json.loads(GOOD), 'a green cat']
  assert notes == ['an answer without a new prompt']
  second, third = (r['body']['messages'][1]['content'] for r in server.requests[1:])
  assert 'Write 1 different' in second and 'a red cat in a white background' in second
  assert second == third


def test_many_are_asked_for_in_several_questions(tmp_path, monkeypatch):
  def answer(handler) -> None:
    asked = handler.server.requests[-1]['body']['messages'][1]['content']
    count, start = int(asked.split()[1]), asked.count('cat number')
    prompts = json.dumps([f'cat number {start + i}' for i in range(count)])
    if count > 8:
      prompts = prompts[:-9]  # cut off
    reply = {'choices': [{'message': {'content': prompts}}]}
    handler.send(200, json.dumps(reply).encode())

  with serve(monkeypatch, answer) as server:
    prompts, notes = asker(tmp_path, batch=8).prompts(CAT, 20, 0)
    assert prompts == [f'cat number {i}' for i in range(20)] and not notes
    counts = [r['body']['messages'][1]['content'].split()[1] for r in server.requests]
    assert counts == ['8', '8', '4']
    server.requests.clear()
    # one that is cut off is asked for fewer
    prompts, notes = asker(tmp_path, batch=16).prompts(CAT, 16, 0)
    assert prompts == [f'cat number {i}' for i in range(16)]
    assert notes == ['an answer without a new prompt']
    counts = [r['body']['messages'][1]['content'].split()[1] for r in server.requests]
    assert counts == ['16', '8', '8']


def test_an_answer_on_disk_that_is_damaged_is_asked_for_again(tmp_path, monkeypatch):
  with serve(monkeypatch, GOOD) as server:
    asker(tmp_path).prompts(CAT, 4, 0)
    (file,) = (tmp_path / 'answers').iterdir()
    whole = file.read_text()
    for answer in ('"text": 7', '"text": "x", "asked": -5', '"text": "x", "other": 1'):
      file.write_text(f'{{"answer": {{{answer}}}}}')
      asker(tmp_path).prompts(CAT, 4, 0)
      assert file.read_text() == whole
    file.write_bytes(b'\xff')
    asker(tmp_path).prompts(CAT, 4, 0)
    assert file.read_text() == whole and len(server.requests) == 5


def test_one_that_repeats_itself_is_not_asked_for_ever(tmp_path, monkeypatch):
  with serve(monkeypatch, GOOD) as server:
    prompts, notes = asker(tmp_path, rounds=4).prompts(CAT, 9, 0)
    assert len(prompts) == 4 and len(server.requests) == 4
    assert notes == ['an answer without a new prompt'] * 3 + ['too few prompts']
    with pytest.raises(UserError, match=r"4 of 9 prompts of 'cat' .*raise rounds"):
      asker(tmp_path, shortfall='error').prompts(CAT, 9, 0)


def test_half_a_surrogate_pair_is_garbage_and_kept_as_such(tmp_path, monkeypatch):
  half = '["a red cat", "a cat \ud83d"]'
  with serve(monkeypatch, half) as server:
    for _ in range(2):
      prompts, _ = asker(tmp_path, rounds=1).prompts(CAT, 1, 0)
      assert prompts == ['a red cat']
    assert len(server.requests) == 1


def test_a_busy_server_is_waited_for_as_it_asks(tmp_path, monkeypatch):
  with serve(monkeypatch, 429, 500, GOOD):
    ask = asker(tmp_path)
    assert len(ask.prompts(CAT, 4, 0)[0]) == 4
  assert ask.waits == [7.0, 14.0]


def hang_up(handler) -> None:
  handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices"')
  handler.close_connection = True


def too_late(handler) -> None:
  time.sleep(0.6)
  handler.send(200, b'{}')


@pytest.mark.parametrize(
  ('fault', 'message'),
  [
    (503, '503'),
    (hang_up, 'no chat completion'),
    (too_late, 'timed out|TimeoutError'),
    (b'not json', 'no chat completion'),
    (b'[' * 2000, 'no chat completion'),
    (b'{"choices": []}', 'no chat completion'),
    ({'choices': [{'message': {'content': None}}]}, 'without text'),
    (b'x' * (1 << 20) + b'x', 'more than 1,048,576 bytes'),
  ],
  ids=['busy', 'cut', 'late', 'text', 'deep', 'empty', 'null', 'large'],
)
def test_faults_are_tried_again_then_said(tmp_path, monkeypatch, fault, message):
  endpoint = EndpointConfig('some-model', timeout=0.3, retries=1, backoff=0.1)
  with serve(monkeypatch, fault, GOOD):
    assert len(asker(tmp_path, endpoint).prompts(CAT, 4, 0)[0]) == 4
  with serve(monkeypatch, fault) as server, pytest.raises(UserError, match=message) as found:
    asker(tmp_path, endpoint).prompts(CAT, 4, 1)
  assert len(server.requests) == 2
  assert 'after 2 tries' in str(found.value) and KEY not in str(found.value)


@pytest.mark.parametrize(
  ('status', 'message'),
  [(401, 'OPENAI_API_KEY'), (403, 'OPENAI_API_KEY'), (400, '400 Bad Request'), (404, '404')],
)
def test_what_no_try_mends_is_said_at_once(tmp_path, monkeypatch, status, message):
  with serve(monkeypatch, status) as server, pytest.raises(UserError, match=message) as found:
    asker(tmp_path).prompts(CAT, 4, 0)
  assert len(server.requests) == 1 and KEY not in str(found.value)


def test_a_redirect_is_not_followed_with_the_key(tmp_path, monkeypatch):
  def elsewhere(handler) -> None:
    handler.send(302, b'', {'Location': 'http://127.0.0.1:9/steal'})

  with serve(monkeypatch, elsewhere) as server, pytest.raises(UserError, match='302'):
    asker(tmp_path).prompts(CAT, 4, 0)
  assert len(server.requests) == 1


def test_limits_on_tokens_and_cost_end_it(tmp_path, monkeypatch):
  with serve(monkeypatch, '["a red cat"]', '["a blue cat"]') as server:
    ask = asker(tmp_path, max_tokens=100, max_total_tokens=900, rounds=9)
    prompts, notes = ask.prompts(CAT, 9, 0)
    assert 'the limit of 900 tokens is reached' in notes and ask.tokens <= 900
    assert 0 < len(prompts) < 9
    asked = len(server.requests)
    costly = {'price_asked': 1e6, 'price_answered': 1e6}
    ask = asker(tmp_path / 'b', max_tokens=100, max_cost=1.0, rounds=9, **costly)
    assert ask.prompts(CAT, 9, 0) == ([], ['the limit of 1 on costs is reached', 'too few prompts'])
    assert len(server.requests) == asked


def test_what_the_model_lacks_other_strategies_give(tmp_path, monkeypatch):
  with serve(monkeypatch, GOOD, 'nothing'):
    config = PromptConfig(
      per_category=6,
      strategies={'llm': 1.0, 'grammar': 1e-9},
      llm=LlmConfig(endpoint=SERVER, parallel=1),
    )
    rows, notes = make_prompts(config, [CAT], None, seed=0, cache=tmp_path, asker=asker(tmp_path))
  # mixed, so that a few images are of both
  assert [r.strategy for r in rows] == ['llm', 'grammar', 'llm', 'llm', 'grammar', 'llm']
  assert '1 × language model: too few prompts' in notes


def test_several_categories_at_a_time_give_the_same_rows(tmp_path, monkeypatch):
  def colours(handler) -> None:
    name = handler.server.requests[-1]['body']['messages'][1]['content']
    name = name.split('single ')[1].split('.')[0]
    prompts = json.dumps([f'a {c} {name} here' for c in ('red', 'blue')])
    reply = {'choices': [{'message': {'content': prompts}}]}
    handler.send(200, json.dumps(reply).encode())

  categories = [Category(f'thing{i}') for i in range(6)]
  config = PromptConfig(per_category=2, strategies={'llm': 1.0}, llm=LlmConfig(endpoint=SERVER))
  with serve(monkeypatch, colours):
    one, _ = make_prompts(
      config, categories, None, seed=0, cache=tmp_path, asker=asker(tmp_path, parallel=1)
    )
  with serve(monkeypatch, 500):  # all answers are kept
    monkeypatch.setenv('OPENAI_BASE_URL', 'http://127.0.0.1:9/v1')
    other = asker(tmp_path, parallel=3)
    other._model.name = asker_name(tmp_path)
    many, _ = make_prompts(config, categories, None, seed=0, cache=tmp_path, asker=other)
  assert one == many and len(one) == 12


def asker_name(tmp_path) -> str:
  """The model's name in the answers that are kept."""
  file = next((tmp_path / 'answers').iterdir())
  return json.loads(file.read_text())['question']['model']


@pytest.mark.parametrize(
  ('variables', 'message'),
  [
    ({}, 'OPENAI_BASE_URL: set it'),
    ({'OPENAI_BASE_URL': 'host'}, 'OPENAI_BASE_URL: set it'),
    ({'OPENAI_BASE_URL': 'https://host/v1'}, 'OPENAI_API_KEY: not set'),
  ],
)
def test_a_missing_variable_is_named(tmp_path, monkeypatch, variables, message):
  for name in ('OPENAI_BASE_URL', 'OPENAI_API_KEY'):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=message):
    Asker(LlmConfig(endpoint=SERVER), tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'folder': 'x', 'endpoint': SERVER}, 'either folder or endpoint'),
    ({'rounds': 0}, 'rounds'),
    ({'max_cost': 1.0}, 'needs price_asked'),
    ({'temperature': -1.0}, 'temperature'),
  ],
)
def test_bad_configs(changes, message):
  with pytest.raises(UserError, match=message):
    LlmConfig(**changes)


def test_no_model_is_named(tmp_path):
  with pytest.raises(UserError, match=r'needs folder or endpoint.model'):
    Asker(LlmConfig(), tmp_path)
  with pytest.raises(UserError, match=r'has no config.json'):
    Asker(LlmConfig(folder=str(tmp_path)), tmp_path)
