"""The palette, and how a drawing takes one of its colours."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

NATURAL = 'natural'  # the drawing as it is; captions then name no colour

_OUTLINE = 0.15  # value below which a pixel is outline, not fill
_SATURATED = 0.2
_HUE_WIDTH = 45.0  # degrees around the main hue that count as the same paint
_LARGE_SHARE = 0.55  # of the fill that must change for a colour to be seen


@dataclasses.dataclass(frozen=True)
class Paint:
  """A colour of the palette.

  Attributes:
    pure: red, green and blue of its hue at full saturation, in [0, 1].
    saturation: of the painted fill.
    value: median value of the painted fill; outlines and shading keep their ratio to it.
  """

  pure: tuple[float, float, float]
  saturation: float
  value: float


@dataclasses.dataclass(frozen=True)
class PaintPlan:
  """Which pixels of a drawing take a colour, found once on a large rendering.

  Attributes:
    mode: 'hue' paints the main hue (the banana, not its stalk), 'saturated' all that has a hue,
      'all' white and grey as well.
    hue: the main hue in degrees.
    value: median value of the pixels that are painted.
  """

  mode: str
  hue: float
  value: float


PALETTE: dict[str, Paint] = {
  'red': Paint((1.0, 0.05, 0.05), 0.88, 0.88),
  'orange': Paint((1.0, 0.50, 0.0), 0.95, 0.98),
  'yellow': Paint((1.0, 0.90, 0.0), 0.88, 1.0),
  'green': Paint((0.15, 1.0, 0.15), 0.78, 0.68),
  'blue': Paint((0.0, 0.38, 1.0), 0.85, 0.92),
  'purple': Paint((0.60, 0.0, 1.0), 0.75, 0.72),
  'pink': Paint((1.0, 0.10, 0.62), 0.58, 1.0),
  'grey': Paint((1.0, 1.0, 1.0), 0.0, 0.62),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
  'white': (255, 255, 255),
  'light blue': (176, 216, 252),
  'light green': (188, 234, 178),
  'light yellow': (255, 243, 166),
  'light pink': (255, 204, 222),
  'lavender': (212, 198, 250),
  'beige': (232, 212, 184),
  'light grey': (208, 211, 215),
}


def plan_paint(image: UInt8[np.ndarray, 'height width 4']) -> PaintPlan:
  """Decides how a drawing is to be painted.

  Args:
    image: red, green, blue, alpha (not premultiplied); best 64 px or more.
  """
  pixels = image.reshape(-1, 4).astype(np.float32) / 255
  value = pixels[:, :3].max(1)
  fill = (pixels[:, 3] > 0.9) & (value > _OUTLINE)
  if not fill.any():
    return PaintPlan('all', 0.0, 1.0)
  rgb, value = pixels[fill, :3], value[fill]
  saturation, hue = _saturation(rgb), _hue(rgb)
  saturated = saturation > _SATURATED
  if saturated.any():
    # the middle of the fullest arc on a circle of 72 bins
    bins = np.bincount((hue[saturated] / 5).astype(int) % 72, minlength=72)
    arcs = sum(np.roll(bins, shift) for shift in range(-4, 5))
    main = float(np.argmax(arcs)) * 5 + 2.5
    same = saturated & (_hue_distance(hue, main) < _HUE_WIDTH)
    if same.mean() > _LARGE_SHARE:
      return PaintPlan('hue', main, float(np.median(value[same])))
    if saturated.mean() > _LARGE_SHARE:
      return PaintPlan('saturated', main, float(np.median(value[saturated])))
  return PaintPlan('all', 0.0, float(np.median(value)))


def paint(
  rgb: Float[np.ndarray, 'height width 3'], colour: str, plan: PaintPlan
) -> Float[np.ndarray, 'height width 3']:
  """Returns the drawing in a colour of the palette.

  Value is scaled by one factor, so that black outlines stay black and shading stays shading; what
  would grow brighter than 1 loses saturation instead, as a highlight does.

  Args:
    rgb: in [0, 1], not premultiplied by alpha.
    colour: a key of `PALETTE`.
    plan: of the same drawing.
  """
  target = PALETTE[colour]
  gain = float(np.clip(target.value / max(plan.value, 0.05), 0.5, 5.0))
  value = rgb.max(-1) * gain
  excess = np.clip(value - 1, 0, 0.5)
  saturation = target.saturation * (1 - excess)
  tone = 1 - saturation[..., None] * (1 - np.array(target.pure, np.float32))
  painted = np.minimum(value, 1)[..., None] * tone
  if plan.mode == 'all':
    return painted
  chosen = _saturation(rgb) > _SATURATED
  if plan.mode == 'hue':
    chosen &= _hue_distance(_hue(rgb), plan.hue) < _HUE_WIDTH
  return np.where(chosen[..., None], painted, rgb)


def _saturation(rgb: Float[np.ndarray, '*shape 3']) -> Float[np.ndarray, '*shape']:
  high = rgb.max(-1)
  return (high - rgb.min(-1)) / np.maximum(high, 1e-6)


def _hue(rgb: Float[np.ndarray, '*shape 3']) -> Float[np.ndarray, '*shape']:
  """Returns the hue in degrees, [0, 360); 0 for grey."""
  red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
  high = rgb.max(-1)
  spread = np.maximum(high - rgb.min(-1), 1e-6)
  sector = np.where(
    high == red,
    (green - blue) / spread,
    np.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
  )
  return (sector * 60) % 360


def _hue_distance(first: np.ndarray, second: np.ndarray | float) -> np.ndarray:
  """Returns the angle between two hues, in [0, 180]; shapes broadcast."""
  return np.abs((first - second + 180) % 360 - 180)
