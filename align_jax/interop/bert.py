"""Text towers of the BERT family, `BertModel`: MiniLM, BGE, E5."""

import json
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.interop.architecture import Architecture, Fields
from align_jax.interop.clip import tower
from align_jax.interop.rules import Rule, linear, norm

# how sentence-transformers says what to make of the tokens
_POOLS = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls'}


def _read(folder: Path, config: Any) -> Fields:
  where = f'{folder}/config.json'
  if getattr(config, 'position_embedding_type', 'absolute') not in (None, 'absolute'):
    raise UserError(f'{where}: only absolute positions are supported')
  return {
    'text': {
      **tower(config, where),
      'vocab_size': config.vocab_size,
      'length': config.max_position_embeddings,
      'causal': False,
      'pool': _pool(folder),
      'pad_id': config.pad_token_id or 0,
      'mask_padding': True,
      'bert': True,
      'token_types': config.type_vocab_size,
    }
  }


def _pool(folder: Path) -> str:
  """Reads sentence-transformers' `1_Pooling`; without it, the mean.

  Raises:
    UserError: another way of pooling.
  """
  path = folder / '1_Pooling' / 'config.json'
  if not path.is_file():
    return 'mean'
  settings = json.loads(path.read_bytes())
  modes = [k for k, v in settings.items() if k.startswith('pooling_mode') and v is True]
  named = settings.get('pooling_mode')  # newer folders name it
  if named in ('mean', 'cls'):
    return named
  if len(modes) != 1 or modes[0] not in _POOLS:
    raise UserError(
      f'{path}: only the mean and the first token are supported, not {modes or named}'
    )
  return _POOLS[modes[0]]


def rules(fields: Fields) -> list[Rule]:
  """The table of `BertModel`."""
  del fields  # the same for all sizes
  ours, theirs = 'text/blocks/layer', 'encoder.layer.{i}'
  attention = f'{theirs}.attention'
  query_key_value = [f'{attention}.self.{part}' for part in ('query', 'key', 'value')]
  return [
    Rule(('text/token',), ('embeddings.word_embeddings.weight',)),
    Rule(('text/position',), ('embeddings.position_embeddings.weight',)),
    Rule(('text/token_type',), ('embeddings.token_type_embeddings.weight',)),
    *norm('text/norm', 'embeddings.LayerNorm'),
    *linear(f'{ours}/attention/qkv', *query_key_value),
    *linear(f'{ours}/attention/out', f'{attention}.output.dense'),
    *norm(f'{ours}/norm1', f'{attention}.output.LayerNorm'),
    *linear(f'{ours}/mlp/up', f'{theirs}.intermediate.dense'),
    *linear(f'{ours}/mlp/down', f'{theirs}.output.dense'),
    *norm(f'{ours}/norm2', f'{theirs}.output.LayerNorm'),
  ]


BERT = Architecture(
  'BertModel',
  _read,
  rules,
  prefixes=('bert.', 'model.', ''),
  unused=('embeddings.position_ids', 'pooler.', 'cls.'),
)
