"""An exported folder against the model it came from, before anybody else sees it."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from align_jax.errors import UserError
from align_jax.interop.folder import load_folder, read_folder
from align_jax.interop.track import Merged
from align_jax.interop.write import DTYPES, ExportDtype

EXAMPLES = 16
# of any number of a unit-norm embedding: what rounding the weights alone may do
TOLERANCES: Mapping[ExportDtype, float] = {'float32': 1e-4, 'float16': 5e-3, 'bfloat16': 3e-2}
_NOUNS = ('cat', 'tree', 'boat', 'lamp', 'horse', 'cup', 'bridge', 'cloud')
_TEMPLATES = ('a photo of a {}', 'Two {}s, and a much longer text about THEM: 12 of 34, if any.')


def examples(seed: int = 0) -> tuple[list[Image.Image], list[str]]:
  """Pictures of several shapes and texts of several lengths."""
  rng = np.random.default_rng(seed)
  pictures = []
  for _ in range(EXAMPLES):
    size = rng.integers(40, 200, 2)
    noise = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8).astype(np.uint8))
    pictures.append(noise.filter(ImageFilter.GaussianBlur(3)))
  return pictures, [template.format(noun) for noun in _NOUNS for template in _TEMPLATES]


def has_torch() -> bool:
  """Whether PyTorch is here to load an exported folder with."""
  return importlib.util.find_spec('torch') is not None


def check_with_torch(
  folder: Path,
  pictures: list[Image.Image],
  texts: list[str],
  expected: tuple[Float[np.ndarray, 'n dim'], Float[np.ndarray, 'n dim']],
  length: int,
  dtype: ExportDtype,
  *,
  adapter: Path | None = None,
) -> float:
  """Loads the folder with PyTorch and `transformers`, processors included, and compares embeddings.

  Args:
    folder: the exported folder.
    pictures, texts: examples.
    expected: our embeddings of them, unit norm.
    length: tokens of a text.
    dtype: of the exported weights.
    adapter: a `peft` adapter to put on the model.

  Returns: the largest difference.

  Raises:
    UserError: it is larger than rounding explains.
  """
  import torch
  import transformers

  model: Any = transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32)
  if adapter is not None:
    import peft

    model = peft.PeftModel.from_pretrained(model, str(adapter)).get_base_model()
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
  processor = transformers.AutoImageProcessor.from_pretrained(str(folder))
  model.eval()
  with torch.no_grad():
    pixels = processor(pictures, return_tensors='pt')['pixel_values']
    padded = {'padding': 'max_length', 'truncation': True, 'max_length': length}
    ids = tokenizer(texts, return_tensors='pt', **padded)['input_ids']
    found = (
      _unit(model.get_image_features(pixel_values=pixels)),
      _unit(model.get_text_features(input_ids=ids)),
    )
  worst = 0.0
  for what, ours, theirs in zip(('images', 'texts'), expected, found, strict=True):
    difference = float(np.max(np.abs(ours - theirs)))
    if not difference <= TOLERANCES[dtype]:
      raise UserError(
        f'{folder}: PyTorch embeds {what} differently, by {difference:.2g} at most where rounding '
        f'explains {TOLERANCES[dtype]}; nothing was written. Please report it'
      )
    worst = max(worst, difference)
  return worst


def check_llava_with_torch(
  folder: Path,
  pictures: list[Image.Image],
  questions: list[str],
  tokens: list[np.ndarray],
  expected: list[Float[np.ndarray, '...']],
  dtype: ExportDtype,
) -> float:
  """Loads a LLaVA's folder with PyTorch and `transformers`, processor included; compares logits.

  Args:
    folder: the exported folder.
    pictures, questions: of one example each.
    tokens: our tokens of each prompt.
    expected: our logits after each of them, `[length, vocab]`.
    dtype: of the exported weights.

  Returns: the largest difference, as a share of the largest logit where that is above 1.

  Raises:
    UserError: it is larger than rounding explains, or the processor makes other tokens.
  """
  import torch
  import transformers

  model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
    str(folder), dtype=torch.float32
  ).eval()
  processor: Any = transformers.AutoProcessor.from_pretrained(str(folder))
  worst = 0.0
  for picture, question, ids, ours in zip(pictures, questions, tokens, expected, strict=True):
    content = [{'type': 'image', 'image': picture}, {'type': 'text', 'text': question}]
    inputs = processor.apply_chat_template(
      [{'role': 'user', 'content': content}],
      add_generation_prompt=True,
      tokenize=True,
      return_dict=True,
      return_tensors='pt',
    )
    if not np.array_equal(inputs['input_ids'][0].numpy(), ids):
      raise UserError(
        f'{folder}: the processor of transformers makes other tokens of {question!r}; nothing was '
        'written. Please report it'
      )
    with torch.no_grad():
      theirs = model(**inputs).logits[0].numpy()
    worst = max(worst, float(np.max(np.abs(ours - theirs)) / max(1.0, np.max(np.abs(ours)))))
  if not worst <= TOLERANCES[dtype]:
    raise UserError(
      f'{folder}: the logits of PyTorch differ, by {worst:.2g} at most where rounding explains '
      f'{TOLERANCES[dtype]}; nothing was written. Please report it'
    )
  return worst


def _unit(features: Any) -> np.ndarray:
  value = getattr(features, 'pooler_output', features).numpy()
  return value / np.linalg.norm(value, axis=1, keepdims=True)


def check_with_table(folder: Path, track: Merged, dtype: ExportDtype) -> None:
  """Without PyTorch: reads the folder back and compares every number.

  Raises:
    UserError: one differs by more than the rounding of `dtype`.
  """
  shapes = {name: np.empty(shape, np.void) for name, shape in track.shapes.items()}
  found = load_folder(read_folder(folder), shapes)
  for name, value in found.items():
    count = track.shapes[name][0] if '/blocks/layer/' in name else None
    for layer in range(count) if count is not None else (None,):
      wanted = track.read(name, layer).astype(DTYPES[dtype]).astype(np.float32)
      if not np.array_equal(value if layer is None else value[layer], wanted):
        raise UserError(f'{folder}: {name} is not as in the checkpoint; nothing was written')
