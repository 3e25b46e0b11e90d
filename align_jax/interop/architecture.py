"""What an architecture of another library is to us: its table of names, its config both ways."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align_jax.errors import UserError, did_you_mean
from align_jax.interop.rules import Rule
from align_jax.models.dual_encoder import DualEncoderConfig

Fields = dict[str, Any]  # of `DualEncoderConfig`, nested as in `config.model`

ACTIVATIONS = {'quick_gelu': 'quick_gelu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh'}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One architecture.

  Attributes:
    name: for messages.
    read: the folder and its config (what `transformers` makes of config.json) -> the fields of ours
      that the folder decides.
    rules: our fields -> the table.
    prefixes: what may stand before the names in the table: published files differ from those that
      `transformers` writes now. The first one that a file's names show is taken.
    unused: parts of tensor names that our model has no use for (buffers, heads we do not read).
    unread: our fields -> more of them.
    aliases: see `Tensors`.
    write: our config -> the config.json; None: there is no way out.
  """

  name: str
  read: Callable[[Path, Any], Fields]
  rules: Callable[[Fields], Sequence[Rule]]
  prefixes: tuple[str, ...] = ('',)
  unused: tuple[str, ...] = ()
  unread: Callable[[Fields], Sequence[str]] = lambda fields: ()
  aliases: tuple[tuple[str, str], ...] = ()
  write: Callable[[DualEncoderConfig], dict[str, Any]] | None = None


def check_fields(name: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
  """Refuses a model that an architecture cannot hold.

  Args:
    name: of the architecture.
    fields: field of `config.model` -> the value it has, and the one it must have.

  Raises:
    UserError: another value than it must have.
  """
  for field, (has, must) in fields.items():
    if has != must:
      raise UserError(
        f'config.model.{field}: {has!r}, but a {name} of transformers has {must!r}; models of '
        'configs/clip.py:openai or configs/siglip_b16.py can be exported'
      )


def activation(name: str, where: str) -> str:
  """Our name of an activation.

  Raises:
    UserError: it has none here.
  """
  if name not in ACTIVATIONS:
    raise UserError(
      f'{where}: activation {name!r} is not supported{did_you_mean(name, ACTIVATIONS)}'
    )
  return ACTIVATIONS[name]


def their_activation(name: str) -> str:
  """The name that `transformers` has for one of our activations."""
  return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)
