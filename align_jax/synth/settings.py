"""What of a run's config decides the rows of each stage."""

import dataclasses
from typing import Any

from align_jax.synth.config import SynthConfig

STAGES = ('categories', 'prompts', 'generate', 'annotate', 'score', 'filter', 'shards')
SHARDS = 'shards'
# settings that decide how rows are made and never what they are: they may change at any time
_PASSING = frozenset(
  {
    *('batch_size', 'device', 'mesh', 'scan'),  # of generators and annotation
    *('parallel', 'max_total_tokens', 'max_cost', 'price_asked', 'price_answered'),  # of llm
    *('timeout', 'retries', 'backoff', 'url_variable', 'key_variable'),  # of llm.endpoint
  }
)


def stage_settings(config: SynthConfig, name: str) -> dict[str, Any]:
  """Returns what of the config decides the rows of a stage, as JSON values."""
  embedder = {'embedder': config.embedder, 'text_embedder': config.text_embedder}
  settings: dict[str, dict[str, Any]] = {
    'categories': {'real': config.real, **embedder, 'categories': config.categories},
    'prompts': {'prompts': config.prompts, 'seed': config.images.seed},
    'generate': {'images': config.images, 'generators': config.generators},
    'annotate': {'annotation': config.annotation},
    'score': {'scores': config.filtration.score_settings()},
    'filter': {'filtration': config.filtration},
    SHARDS: {'partners': config.partners, 'licence': config.licence},
  }
  return {name: _lasting(plain(value)) for name, value in settings[name].items()}


def _lasting(value: Any) -> Any:
  """Leaves passing settings out; those of training configs all last."""
  if isinstance(value, dict):
    return {k: v if k == 'train' else _lasting(v) for k, v in value.items() if k not in _PASSING}
  return [_lasting(item) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
  """A config's value as JSON values."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return dataclasses.asdict(value)
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return value
