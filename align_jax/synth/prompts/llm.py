"""Prompts from a language model: asked, cached, counted, asked again when it answers garbage."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from align_jax.errors import UserError, require
from align_jax.files import write_file
from align_jax.synth.prompts.answers import ask, is_count, parse
from align_jax.synth.prompts.endpoint import Answer, Endpoint, EndpointConfig
from align_jax.synth.prompts.local import LocalModel
from align_jax.synth.rows import Category

_FEWEST = 4  # prompts of a question, when answers to larger ones were no use


@runtime_checkable
class LanguageModel(Protocol):
  """What answers: `Endpoint` or `LocalModel`."""

  name: str

  def complete(
    self, messages: Sequence[dict[str, str]], *, temperature: float, max_tokens: int, seed: int
  ) -> Answer: ...


@dataclasses.dataclass(frozen=True)
class LlmConfig:
  """How a language model is asked.

  Attributes:
    folder: a text-generation model of transformers on this machine; '' for `endpoint`.
    device: of `folder`, for PyTorch.
    endpoint: where a server is; its `model` is '' for none.
    ending: how each prompt is to end (DiverGen: in a white background).
    temperature: of sampling.
    max_tokens: of an answer, at most.
    batch: prompts of one question, at most: a long answer is cut off at `max_tokens`.
    rounds: questions for a category, at most, where one would do; where `batch` makes n needed,
      n - 1 more. What is missing then, other strategies write.
    parallel: categories that are asked for at a time, of a server. With a limit on tokens or cost
      it is one: so the limit holds, and a second run decides as the first did.
    max_total_tokens: of all questions and answers of a run, those kept from earlier runs included;
      0: no limit. What a server does not count, and tries that broke off, count as the most that
      they can have been.
    max_cost: of a run, in the currency of the prices; 0: no limit.
    price_asked, price_answered: of a million tokens of questions, and of answers.
    shortfall: when the model does not give enough, or a limit is reached: `fill` from the other
      strategies and say so, or `error`.
  """

  folder: str = ''
  device: str = 'cpu'
  endpoint: EndpointConfig = dataclasses.field(default_factory=EndpointConfig)
  ending: str = 'in a white background'
  temperature: float = 1.0
  max_tokens: int = 2048
  batch: int = 32
  rounds: int = 3
  parallel: int = 4
  max_total_tokens: int = 0
  max_cost: float = 0.0
  price_asked: float = 0.0
  price_answered: float = 0.0
  shortfall: Literal['fill', 'error'] = 'fill'

  def __post_init__(self) -> None:
    where = 'config.prompts.llm'
    require(
      not (self.folder and self.endpoint.model), f'{where}.folder', 'set either folder or endpoint'
    )
    require(self.temperature >= 0, f'{where}.temperature', f'{self.temperature} is below 0')
    for name in ('max_tokens', 'batch', 'rounds', 'parallel'):
      require(getattr(self, name) >= 1, f'{where}.{name}', f'{getattr(self, name)}: at least 1')
    for name in ('max_total_tokens', 'max_cost', 'price_asked', 'price_answered'):
      require(getattr(self, name) >= 0, f'{where}.{name}', f'{getattr(self, name)} is below 0')
    require(
      not self.max_cost or self.price_asked + self.price_answered > 0,
      f'{where}.max_cost',
      'needs price_asked and price_answered',
    )


class OverBudget(Exception):
  """The next question might cost more than is allowed."""


class Asker:
  """Asks a model for prompts; every answer is kept in a file, so that it is paid for once.

  Attributes:
    tokens, cost: of all answers used, those of earlier runs included.
  """

  def __init__(self, config: LlmConfig, cache: Path, model: LanguageModel | None = None):
    """Opens the model.

    Args:
      config: how it is asked.
      cache: folder of the answers.
      model: in place of the one that the config names.

    Raises:
      UserError: no model is named, or it cannot be opened.
    """
    require(
      bool(config.folder or config.endpoint.model or model),
      'config.prompts.llm',
      'the strategy llm needs folder or endpoint.model',
    )
    self._config, self._cache = config, cache
    if model is None:
      model = LocalModel(config.folder, config.device) if config.folder else None
    self._model: LanguageModel = model or Endpoint(config.endpoint)
    self.tokens, self.cost = 0, 0.0
    self._lock = threading.Lock()

  @property
  def parallel(self) -> int:
    config = self._config
    one = config.folder or config.max_total_tokens or config.max_cost
    return 1 if one else config.parallel  # one model, one random state

  def prompts(self, category: Category, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Returns up to `count` different prompts of a category, and notes of what went wrong.

    Raises:
      UserError: the model cannot be reached, or `shortfall` is `error` and there are too few.
    """
    have: dict[str, str] = {}
    notes = []
    size = self._config.batch
    for number in range(-(-count // size) + self._config.rounds - 1):
      wanted = min(size, count - len(have))
      messages = ask(category, wanted, self._config.ending, list(have.values()))
      try:
        answer = self._answer(messages, seed + number)
      except OverBudget as error:
        notes.append(str(error))
        break
      found = parse(answer.text, category)
      if not found:  # cut off, perhaps, or too much for it
        size = max(_FEWEST, wanted // 2)
      new = {p.lower(): p for p in found if p.lower() not in have}
      if not new:
        notes.append('an answer without a new prompt')
      have |= new
      if len(have) >= count:
        break
    prompts = list(have.values())[:count]
    if len(prompts) < count:
      notes.append('too few prompts')
      if self._config.shortfall == 'error':
        raise UserError(
          f'config.prompts.llm: {len(prompts)} of {count} prompts of {category.name!r} '
          f'({"; ".join(notes)}); raise rounds, or set shortfall="fill"'
        )
    return prompts, notes

  def _answer(self, messages: list[dict[str, str]], seed: int) -> Answer:
    config = self._config
    # some servers take 32 bits
    question = {
      'model': self._model.name,
      'messages': messages,
      'temperature': config.temperature,
      'max_tokens': config.max_tokens,
      'seed': seed % 2**31,
    }
    text = json.dumps(question, sort_keys=True, ensure_ascii=False)
    path = self._cache / f'{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json'
    # a token is a byte at least; 64 for what a chat template puts around the messages
    most = sum(len(m['content'].encode()) for m in messages) + 64
    self._check_budget(most)
    answer = _read(path)
    if answer is None:
      answer = self._model.complete(
        messages,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=seed % 2**31,
      )
      # half a surrogate pair, which JSON may spell out, is no text: not for a file either
      whole = answer.text.encode('utf-8', 'replace').decode()
      answer = dataclasses.replace(answer, text=whole)
      kept = {'question': question, 'answer': dataclasses.asdict(answer)}
      write_file(str(path), json.dumps(kept, ensure_ascii=False, indent=1))
    asked = most if answer.asked is None else answer.asked
    answered = config.max_tokens if answer.answered is None else answer.answered
    asked, answered = asked + answer.lost * most, answered + answer.lost * config.max_tokens
    with self._lock:
      self.tokens += asked + answered
      self.cost += self._price(asked, answered)
    return answer

  def _check_budget(self, asked: int) -> None:
    """Raises OverBudget if an answer of the greatest length would go over a limit."""
    config = self._config
    with self._lock:
      if config.max_total_tokens and (
        self.tokens + asked + config.max_tokens > config.max_total_tokens
      ):
        raise OverBudget(f'the limit of {config.max_total_tokens:,} tokens is reached')
      if config.max_cost and self.cost + self._price(asked, config.max_tokens) > config.max_cost:
        raise OverBudget(f'the limit of {config.max_cost:g} on costs is reached')

  def _price(self, asked: int, answered: int) -> float:
    config = self._config
    return (asked * config.price_asked + answered * config.price_answered) / 1e6


def _read(path: Path) -> Answer | None:
  """Reads an answer that was kept; one that is damaged is asked for again."""
  try:
    answer = Answer(**json.loads(path.read_text(encoding='utf-8'))['answer'])
  except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
    return None
  counts = (answer.asked, answer.answered, answer.lost)
  good = isinstance(answer.text, str) and all(n is None or is_count(n) for n in counts)
  return answer if good and answer.lost is not None else None
