"""The model card of an exported track: what a stranger must know before using it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.modality import Modality

_SHOWN = 16  # scores in the table


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the card says.

  Attributes:
    name: of the model.
    architecture: the class of `transformers`.
    track: which track it is.
    objective: `config.objective` of the run.
    data: field of `config.data` -> source spec.
    licences: source spec -> licence and attribution of its records.
    scores: what `align_jax.evaluate` measured; empty where nothing was given.
    command: that measured it.
    versions: of the libraries.
    adapter: it is an adapter over the real track, not a model.
  """

  name: str
  architecture: str
  track: Modality
  objective: Mapping[str, Any]
  data: Mapping[str, str]
  licences: Mapping[str, str]
  scores: Mapping[str, float]
  command: Sequence[str]
  versions: Mapping[str, str]
  adapter: bool = False


_INTENDED = 'retrieval, zero-shot classification and features of'
_TRACKS = {
  'real': 'the real track: the encoder of real images, which alignment never changes',
  'generated': 'the generated track: the encoder of generated images, aligned to that of real ones',
}


LLAVA = 'LlavaForConditionalGeneration'


def model_card(facts: Facts) -> str:
  """The text of README.md."""
  answers = facts.architecture == LLAVA
  task = 'image-text-to-text' if answers else 'zero-shot-image-classification'
  header = {
    'library_name': 'peft' if facts.adapter else 'transformers',
    'pipeline_tag': task,
    'tags': ['align_jax', 'image-text', 'llava' if answers else 'clip', f'{facts.track}-track'],
    'license': 'other',
  }
  lines = ['---', *(f'{key}: {json.dumps(value)}' for key, value in header.items()), '---', '']
  lines += [
    f'# {facts.name}',
    '',
    f'A `{facts.architecture}` that '
    f'{"answers questions about images" if answers else "embeds images and texts in one space"}; '
    f'{_TRACKS[facts.track]}. Trained and exported with align_jax.',
    '',
  ]
  lines += ['## Use', '', '```python', *_usage(facts), '```', '']
  lines += ['## Method', '', f'Objective `{facts.objective.get("name")}`:', '', '```json']
  lines += [json.dumps(dict(facts.objective), indent=1, default=list), '```', '']
  lines += ['## Data and licence', '']
  lines += [
    f'- {field}: `{spec}`: {_plain(facts.licences.get(spec) or "licence not stated by the source")}'
    for field, spec in facts.data.items()
    if spec
  ]
  lines += [
    '',
    'The weights are under the licence of whoever trained them; those of the data are above.',
    '',
  ]
  lines += ['## Scores', '', *_scores(facts), '']
  lines += [
    '## Intended use',
    '',
    f'Research on {"answers about" if answers else _INTENDED} images'
    + (
      ' made by a generator, of the kind it was trained on.' if facts.track == 'generated' else '.'
    )
    + ' Not meant to decide anything about people. It has the biases of its data, and was tested '
    'on nothing but what stands under Scores.',
    '',
    'Versions: ' + ', '.join(f'{name} {version}' for name, version in facts.versions.items()) + '.',
    '',
  ]
  return '\n'.join(lines)


def _usage(facts: Facts) -> list[str]:
  if facts.adapter:
    return [
      'from peft import PeftModel',
      'from transformers import AutoModel',
      '',
      "model = PeftModel.from_pretrained(AutoModel.from_pretrained('BASE'), 'THIS')",
    ]
  if facts.architecture == LLAVA:
    return [
      'from transformers import AutoProcessor, LlavaForConditionalGeneration',
      '',
      "model = LlavaForConditionalGeneration.from_pretrained('THIS')",
      "processor = AutoProcessor.from_pretrained('THIS')",
      "content = [{'type': 'image', 'image': picture}, {'type': 'text', 'text': question}]",
      'inputs = processor.apply_chat_template(',
      "  [{'role': 'user', 'content': content}], add_generation_prompt=True, tokenize=True,",
      "  return_dict=True, return_tensors='pt')",
      'written = model.generate(**inputs, max_new_tokens=32)[0, inputs.input_ids.shape[1] :]',
      'answer = processor.decode(written, skip_special_tokens=True)',
    ]
  return [
    'from transformers import AutoImageProcessor, AutoModel, AutoTokenizer',
    '',
    "model = AutoModel.from_pretrained('THIS')",
    "pixels = AutoImageProcessor.from_pretrained('THIS')(images, return_tensors='pt')",
    "ids = AutoTokenizer.from_pretrained('THIS')(",
    "  texts, return_tensors='pt', padding='max_length', truncation=True)['input_ids']",
    'images, texts = model.get_image_features(**pixels), model.get_text_features(ids)',
  ]


def _scores(facts: Facts) -> list[str]:
  if not facts.scores:
    return ['None given; `--scores=FILE` of `python -m align_jax.evaluate` puts them here.']
  rows = [f'| {_plain(k)} | {v:.4f} |' for k, v in list(facts.scores.items())[:_SHOWN]]
  command = ' '.join(facts.command).replace('`', "'")
  return ['| score | value |', '| --- | --- |', *rows, '', f'Measured by `{command}`.']


def _plain(text: str) -> str:
  """Text from elsewhere as one line without markup."""
  return ' '.join(text.split()).replace('<', '&lt;').replace('|', '/')
