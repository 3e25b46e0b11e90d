"""A language model on this machine: a text-generation folder of `transformers`."""

import os
from collections.abc import Sequence

from align_jax.errors import UserError
from align_jax.synth.prompts.endpoint import Answer


class LocalModel:
  """Answers by a causal language model in PyTorch.

  Attributes:
    name: tells it from another model.
  """

  def __init__(self, folder: str, device: str = 'cpu'):
    """Loads the model; its weights must be safetensors, its code is transformers' own.

    Raises:
      UserError: no such folder, or PyTorch is missing.
    """
    if not os.path.isfile(os.path.join(folder, 'config.json')):
      raise UserError(
        f'config.prompts.llm.folder: {folder!r} has no config.json; name a folder that holds a '
        'text-generation model saved by transformers'
      )
    try:
      import torch  # slow, and an extra
      from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
      raise UserError(f'config.prompts.llm.folder: needs PyTorch ({error})') from error
    try:
      self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
      self._model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
      )
    except (OSError, ValueError) as error:
      raise UserError(f'config.prompts.llm.folder: {folder!r}: {error}') from error
    self._torch, self._device = torch, device
    self._model = self._model.eval().to(device)
    self.name = f'local {os.path.basename(os.path.abspath(folder))}'

  def complete(
    self, messages: Sequence[dict[str, str]], *, temperature: float, max_tokens: int, seed: int
  ) -> Answer:
    """Answers; the same messages and seed give the same answer on the same machine."""
    torch = self._torch
    if self._tokenizer.chat_template:
      text = self._tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
      )
      inputs = self._tokenizer(text, return_tensors='pt', add_special_tokens=False)
    else:
      text = '\n'.join(m['content'] for m in messages) + '\n'
      inputs = self._tokenizer(text, return_tensors='pt')
    tokens = inputs['input_ids'].to(self._device)
    devices = [] if self._device == 'cpu' else [self._device]
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
      torch.manual_seed(seed)
      sampling = {'do_sample': True, 'temperature': temperature} if temperature > 0 else {}
      out = self._model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=max_tokens,
        pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
        **({'do_sample': False} | sampling),
      )
    new = out[0, tokens.shape[1] :]
    said = self._tokenizer.decode(new, skip_special_tokens=True)
    return Answer(said, int(tokens.shape[1]), len(new))
