"""The mask of one object by SAM-background: point at the background, take all else.

Source: DiverGen, arXiv 2405.10185, section 3.3: the four corners as positive points, the mask of
the largest scale, inverted. It fails where the object touches a corner.
"""

import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

from align_jax.errors import UserError

_LARGEST = 2  # of SAM's three masks (part, whole, larger whole), the last
_INSET = 0.01  # of the side: how far inside the picture a corner's point lies


def load_sam(
  folder: str, device: str = 'cpu'
) -> Callable[[UInt8[np.ndarray, 'height width 3']], Bool[np.ndarray, 'height width']]:
  """Loads a SAM of `transformers`; returns what makes the mask of an image.

  Args:
    folder: with config.json, model.safetensors and preprocessor_config.json.
    device: of PyTorch.

  Raises:
    UserError: no such folder, or PyTorch is missing.
  """
  if not os.path.isfile(os.path.join(folder, 'config.json')):
    raise UserError(
      f'config.annotation.folder: {folder!r} has no config.json; name a folder that holds a SAM '
      'saved by transformers'
    )
  try:
    import torch  # slow, and an extra
    from transformers import SamImageProcessorPil, SamModel
  except ImportError as error:
    raise UserError(f'config.annotation.method: sam needs PyTorch ({error})') from error
  try:
    model = SamModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    processor = SamImageProcessorPil.from_pretrained(folder, local_files_only=True)
  except (OSError, ValueError) as error:
    raise UserError(f'config.annotation.folder: {folder!r}: {error}') from error
  model = model.eval().to(device)

  def mask_of(
    image: UInt8[np.ndarray, 'height width 3'],
  ) -> Bool[np.ndarray, 'height width']:
    height, width = image.shape[:2]
    inputs = processor(images=[image], return_tensors='pt')
    # what the model sees is the picture brought to its own size
    seen = np.asarray(inputs['reshaped_input_sizes'][0], np.float64)
    points = corner_points(width, height) * seen[::-1] / (width, height)
    with torch.inference_mode():
      outputs = model(
        pixel_values=inputs['pixel_values'].to(device),
        input_points=torch.tensor(points, dtype=torch.float32, device=device)[None, None],
        input_labels=torch.ones((1, 1, 4), dtype=torch.long, device=device),
        multimask_output=True,
      )
    masks = processor.post_process_masks(
      outputs.pred_masks.cpu(), inputs['original_sizes'], inputs['reshaped_input_sizes']
    )[0]
    return ~np.asarray(masks[0, _LARGEST]).astype(bool)

  return mask_of


def corner_points(width: int, height: int) -> np.ndarray:
  """Returns x, y of a point in each corner of a picture, pixels."""
  left, top = _INSET * width, _INSET * height
  right, bottom = width - 1 - left, height - 1 - top
  return np.asarray([[left, top], [right, top], [left, bottom], [right, bottom]])
