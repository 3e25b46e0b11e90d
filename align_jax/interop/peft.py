"""The generated track's adapter as a `peft` adapter over the exported real track."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from align_jax.errors import UserError
from align_jax.interop.rules import Rule, layers, name_at
from align_jax.interop.track import Track
from align_jax.interop.write import DTYPES, ExportDtype, architecture_of, write_json
from align_jax.models.dual_encoder import DualEncoderConfig

_PREFIX = 'base_model.model.'
_PROJECTION = 'image_projection/kernel'


def write_adapter(
  folder: Path,
  config: DualEncoderConfig,
  track: Track,
  *,
  base: str,
  dtype: ExportDtype = 'float32',
) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors`.

  Our `qkv` has one update `x A B`; theirs have three, with the same A and a third of B each.

  Args:
    folder: where to.
    config: of the trained model, adapters included.
    track: the generated track.
    base: what `adapter_config.json` calls the base model.
    dtype: of the numbers.

  Raises:
    UserError: a model without adapters, or with whole matrices for them.
  """
  lora = config.lora
  if lora is None:
    raise UserError('--lora=peft: the run has no adapters; use --lora=merge')
  if lora.rank == 'full':
    raise UserError("--lora=peft: rank 'full' is no low-rank adapter; use --lora=merge")
  tensors: dict[str, np.ndarray] = {}
  modules: set[str] = set()
  rules = architecture_of(config).rules({})
  for rule in rules:
    if rule.form != 'linear' or not track.has(f'{_root(rule)}/lora/a'):
      continue
    modules |= {name.removesuffix('.weight') for name in rule.theirs}
    for layer in range(layers(rule, track.shapes) or 0):
      _add(tensors, rule, track, layer, dtype)
  saved = []
  if config.projection == 'dual':
    rule = next(r for r in rules if r.ours == (_PROJECTION,))
    name = rule.theirs[0]
    saved = [name.removesuffix('.weight')]
    tensors[_PREFIX + name] = _stored(track.read(_PROJECTION, None).T, dtype)
  save_file(tensors, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})
  leaves = sorted({module.rpartition('.')[2] for module in modules})
  root = next(iter(modules)).partition('.encoder.')[0].replace('.', r'\.')
  write_json(
    folder / 'adapter_config.json',
    {
      'peft_type': 'LORA',
      'task_type': None,
      'base_model_name_or_path': base,
      'r': lora.rank,
      'lora_alpha': lora.alpha,
      'lora_dropout': 0.0,
      'bias': 'none',
      'fan_in_fan_out': False,
      'inference_mode': True,
      # of the image tower alone: the text tower's layers have the same names
      'target_modules': rf'{root}\..*\.({"|".join(leaves)})',
      'modules_to_save': saved or None,
    },
  )


def _add(
  tensors: dict[str, np.ndarray], rule: Rule, track: Track, layer: int, dtype: ExportDtype
) -> None:
  a, b = (track.read(f'{_root(rule)}/lora/{part}', layer) for part in 'ab')
  for name, part in zip(rule.theirs, np.split(b, len(rule.theirs), axis=-1), strict=True):
    module = _PREFIX + name_at(name, layer).removesuffix('.weight')
    tensors[f'{module}.lora_A.weight'] = _stored(a.T, dtype)
    tensors[f'{module}.lora_B.weight'] = _stored(part.T, dtype)


def _root(rule: Rule) -> str:
  return rule.ours[0].removesuffix('/kernel')


def _stored(value: np.ndarray, dtype: ExportDtype) -> np.ndarray:
  return np.array(value, dtype=DTYPES[dtype], order='C')
