"""A language model on this machine: a text-generation folder of `transformers`."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from align_jax.data.shards import checksum
from align_jax.errors import UserError
from align_jax.synth.prompts.endpoint import Answer

_READ = ('.json', '.safetensors', '.txt', '.model', '.jinja')  # what an answer depends on
_FIELD = 'config.prompts.llm.folder'


class LocalModel:
  """Answers by a causal language model in PyTorch.

  Attributes:
    name: tells it from another model, also one of the same name with other weights.
  """

  def __init__(self, folder: str, device: str = 'cpu'):
    """Loads the model; its weights must be safetensors, its code is transformers' own.

    Raises:
      UserError: no such folder, or PyTorch is missing.
    """
    folder = os.path.expanduser(folder)
    if not os.path.isfile(os.path.join(folder, 'config.json')):
      raise UserError(
        f'{_FIELD}: {folder!r} has no config.json; name a folder that holds a '
        'text-generation model saved by transformers'
      )
    try:
      import torch  # slow, and an extra
      from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
      raise UserError(
        f'{_FIELD}: needs PyTorch ({error}); pip install align_jax[diffusers]'
      ) from error
    alone: dict[str, Any] = {'local_files_only': True, 'trust_remote_code': False}
    try:
      self._tokenizer = AutoTokenizer.from_pretrained(folder, **alone)
      model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **alone)
      self._model = model.eval().to(device)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
      raise UserError(
        f'{_FIELD}: {folder!r} cannot be loaded as a text-generation model on {device!r} '
        f'({_line(error)}); it must hold safetensors and a tokenizer'
      ) from error
    self._torch, self._device = torch, device
    self._length = getattr(self._model.config, 'max_position_embeddings', None)
    self.name = f'local {os.path.basename(os.path.abspath(folder))} {_digest(folder)}'

  def complete(
    self, messages: Sequence[dict[str, str]], *, temperature: float, max_tokens: int, seed: int
  ) -> Answer:
    """Answers; the same messages and seed give the same answer on the same machine.

    Raises:
      UserError: the question is longer than the model reads, or its numbers are not finite.
    """
    torch = self._torch
    inputs = self._tokenizer(
      self._text(messages),
      return_tensors='pt',
      add_special_tokens=not self._tokenizer.chat_template,
    )
    tokens = inputs['input_ids'].to(self._device)
    if self._length is not None:
      max_tokens = min(max_tokens, self._length - tokens.shape[1])
    if max_tokens < 1:
      raise UserError(
        f'{_FIELD}: the model reads {self._length} tokens, a question has {tokens.shape[1]}; '
        'lower config.prompts.llm.batch, or take another'
      )
    devices = [] if self._device == 'cpu' else [self._device]
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
      torch.manual_seed(seed)
      sampling = {'do_sample': True, 'temperature': temperature} if temperature > 0 else {}
      try:
        out = self._model.generate(
          tokens,
          attention_mask=torch.ones_like(tokens),
          max_new_tokens=max_tokens,
          pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
          **({'do_sample': False} | sampling),
        )
      except (RuntimeError, ValueError) as error:  # numbers that are not finite, out of memory
        raise UserError(f'{_FIELD}: cannot answer ({_line(error)})') from error
    new = out[0, tokens.shape[1] :]
    said = self._tokenizer.decode(new, skip_special_tokens=True)
    return Answer(str(said), int(tokens.shape[1]), len(new))

  def _text(self, messages: Sequence[dict[str, str]]) -> str:
    """Writes the messages as the model was trained to read them."""
    whole = '\n'.join(message['content'] for message in messages)
    if not self._tokenizer.chat_template:
      return f'{whole}\n'
    from jinja2 import TemplateError

    last: TemplateError | None = None
    # the templates of some models know no system
    for turns in (list(messages), [{'role': 'user', 'content': whole}]):
      try:
        return str(
          self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
      except TemplateError as error:
        last = error
    raise UserError(f'{_FIELD}: its chat template refuses ({_line(last)})') from last


def _digest(folder: str) -> str:
  """A checksum of all that an answer depends on."""
  found = hashlib.blake2b(digest_size=6)
  for file in sorted(os.listdir(folder)):
    if file.endswith(_READ):
      found.update(f'{file}\0{checksum(os.path.join(folder, file))}\0'.encode())
  return found.hexdigest()


def _line(error: BaseException | None) -> str:
  return ' '.join(str(error).split())[:300]
