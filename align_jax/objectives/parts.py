"""The parts of a dual encoder that an objective may lock, found by parameter name."""

from typing import Literal

Part = Literal['image', 'image_projection', 'text', 'temperature', 'lora', 'generated_projection']


def part_of(name: str) -> Part:
  """Returns the part that the parameter `name` belongs to."""
  if 'lora' in name.split('/'):
    return 'lora'
  top = name.split('/')[0]
  if top in ('image', 'image_projection', 'text', 'generated_projection'):
    return top  # type: ignore[return-value]
  return 'text' if top == 'text_projection' else 'temperature'


def learns(name: str, lock: tuple[Part, ...]) -> bool:
  """Whether the parameter learns when the parts in `lock` do not."""
  return part_of(name) not in lock
