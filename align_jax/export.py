"""Writes a track of a run as a Hugging Face folder, checked against PyTorch before it appears.

A dual encoder becomes a CLIPModel or SiglipModel, a model that answers a LLaVA.

  python -m align_jax.export --checkpoint=runs/gmail --output=exported [--track=real|generated] \\
    [--lora=merge|peft] [--dtype=float32] [--scores=scores.json] [--push=OWNER/NAME [--dry_run]]

`--format=stablehlo` writes serialised functions that need JAX alone instead.
"""

import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags

from align_jax import cli
from align_jax.answerer import Answerer
from align_jax.config import build
from align_jax.data.chat import Chat, load_chat
from align_jax.data.questions import DESCRIBE
from align_jax.data.sources import open_source
from align_jax.data.tokenizer import Tokenizer, load_tokenizer
from align_jax.data.transforms import Transform, apply
from align_jax.encoder import Encoder, eval_transform
from align_jax.errors import UserError
from align_jax.evaluation.sections import versions
from align_jax.interop.card import LLAVA, Facts, model_card
from align_jax.interop.peft import write_adapter
from align_jax.interop.push import check_push, push_folder
from align_jax.interop.stablehlo import write_functions
from align_jax.interop.track import Track, multimodal_track, plain_config
from align_jax.interop.verify import (
  EXAMPLES,
  check_llava_with_torch,
  check_with_table,
  check_with_torch,
  examples,
  has_torch,
)
from align_jax.interop.write import (
  DTYPES,
  ExportDtype,
  architecture_of,
  check_transform,
  write_llava,
  write_model,
)
from align_jax.modality import Modality
from align_jax.models.dual_encoder import DualEncoderConfig
from align_jax.models.multimodal import MultimodalConfig
from align_jax.storage import AnyPath, is_folder, is_remote, open_path, read_bytes, upload
from align_jax.train.config import TrainConfig
from align_jax.train.reader import ParamReader
from align_jax.train.run_config import read_run_config

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Run folder of training.', required=True)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to write, on a disk or gs://; must not exist.', required=True
)
_TRACK = flags.DEFINE_enum('track', 'real', ['real', 'generated'], 'Which track.')
_LORA = flags.DEFINE_enum(
  'lora', 'merge', ['merge', 'peft'], 'peft: an adapter, its base model under OUTPUT/base.'
)
_DTYPE = flags.DEFINE_enum('dtype', 'float32', list(DTYPES), 'Of the weights in the file.')
_FORMAT = flags.DEFINE_enum(
  'format', 'transformers', ['transformers', 'stablehlo'], 'What to write.'
)
_STEP = flags.DEFINE_integer('step', None, 'Which checkpoint; default: the newest.')
_SCORES = flags.DEFINE_string('scores', '', 'Output of align_jax.evaluate, for the model card.')
_VERIFY = flags.DEFINE_enum(
  'verify', 'auto', ['auto', 'torch', 'table'], 'How; auto: torch where it is installed.'
)
_PUSH = flags.DEFINE_string('push', '', 'OWNER/NAME on the Hugging Face hub to upload to as well.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'With --push: list the files, upload nothing.')


def main() -> None:
  """Reads the run, writes aside, verifies, renames, uploads."""
  workdir, output = open_path(_CHECKPOINT.value), open_path(_OUTPUT.value)
  if is_folder(output) or (not is_remote(output) and output.exists()):
    raise UserError(f'--output: {output} exists; name a new folder')
  if _PUSH.value:
    if is_remote(output):
      raise UserError(f'--push: uploads from a disk, but --output is {output}; name a local folder')
    check_push(_PUSH.value, dry_run=_DRY_RUN.value)
  config = read_run_config(workdir)
  write = _open(workdir, config)
  if not is_remote(output):
    output.parent.mkdir(parents=True, exist_ok=True)
  beside = None if is_remote(output) else output.parent
  aside = Path(tempfile.mkdtemp(prefix=f'.{output.name}-', dir=beside))
  try:
    said = write(aside)
    if is_remote(output):
      _upload(aside, output)
    else:
      aside.chmod(0o755)  # mkdtemp makes it private
      os.replace(aside, output)
  finally:
    shutil.rmtree(aside, ignore_errors=True)
  print(f'exported: {output}, {_TRACK.value} track of {said}')
  if _PUSH.value:
    for line in push_folder(Path(output), _PUSH.value, dry_run=_DRY_RUN.value):
      print(f'  {line}')
    print(f'{"would push" if _DRY_RUN.value else "pushed"} to {_PUSH.value}')


def _open(workdir: AnyPath, config: TrainConfig) -> Callable[[Path], str]:
  """Opens a run; returns what writes it into a folder and says what it wrote.

  Raises:
    UserError: a run, or flags for one, that cannot be exported.
  """
  modality = cast(Modality, _TRACK.value)
  reader = ParamReader(workdir, step=_STEP.value)
  transform = eval_transform(config)
  if config.answers:
    if _LORA.value == 'peft' or _FORMAT.value == 'stablehlo':
      raise UserError(
        '--lora=peft, --format=stablehlo: not of a model that answers; leave them out'
      )
    answers = build(MultimodalConfig, config.model_fields, 'config.model')
    chat = load_chat(workdir / 'tokenizer', answers.image.patches)
    return functools.partial(_write_llava, config, answers, reader, chat, transform)
  if not config.has_towers:
    raise UserError(f'--checkpoint: {workdir} is a run of the generator; name an image-text model')
  model = build(DualEncoderConfig, config.model_fields, 'config.model')
  if _LORA.value == 'peft' and (modality != 'generated' or _FORMAT.value != 'transformers'):
    raise UserError('--lora=peft: only the generated track has an adapter; add --track=generated')
  plain = plain_config(model, modality)
  tokenizer = load_tokenizer(workdir / 'tokenizer')
  run = _Run(config, model, reader, tokenizer, transform, modality)
  return functools.partial(_write_functions if _FORMAT.value == 'stablehlo' else _write, run, plain)


def _upload(aside: Path, output: AnyPath) -> None:
  """Copies a folder into a bucket; what names the model comes last: who finds it finds all."""
  files = sorted(
    (path.relative_to(aside) for path in aside.rglob('*') if path.is_file()),
    key=lambda path: (path.name in ('config.json', 'adapter_config.json'), path),
  )
  for path in files:
    upload(aside / path, f'{output}/{path.as_posix()}')


class _Run:
  """A run and what of it is exported."""

  def __init__(
    self,
    config: TrainConfig,
    model: DualEncoderConfig,
    reader: ParamReader,
    tokenizer: Tokenizer,
    transform: Transform,
    modality: Modality,
  ):
    self.config, self.model, self.reader = config, model, reader
    self.tokenizer, self.transform, self.modality = tokenizer, transform, modality

  def track(self, modality: Modality | None = None) -> Track:
    return Track(self.model, modality or self.modality, self.reader.read, self.reader.shapes)


def _write_functions(run: _Run, plain: DualEncoderConfig, aside: Path) -> str:
  """Writes the serialised functions; returns what to say of it."""
  track = run.track()
  params = {name: track.whole(name) for name in track.shapes}
  write_functions(aside, plain, params, run.config.data.length)
  run.tokenizer.save(aside / 'tokenizer')
  return f'step {run.reader.step}; image.stablehlo and text.stablehlo'


def _write(run: _Run, plain: DualEncoderConfig, aside: Path) -> str:
  """Writes the folder of `transformers` and verifies it; returns what to say of it."""
  dtype = cast(ExportDtype, _DTYPE.value)
  peft = _LORA.value == 'peft'
  length = run.config.data.length
  check_transform(plain, run.transform)
  base = aside / 'base' if peft else aside
  base.mkdir(exist_ok=True)
  written: Modality = 'real' if peft else run.modality
  names = write_model(
    base, plain, run.track(written), run.tokenizer, run.transform, length, dtype=dtype
  )
  if peft:
    name = os.fspath(open_path(_OUTPUT.value) / 'base')
    write_adapter(aside, run.model, run.track(), base=name, dtype=dtype)
    card = model_card(_facts(run.config, architecture_of(run.model).name, 'real'))
    (base / 'README.md').write_text(card)
  facts = _facts(run.config, architecture_of(run.model).name, run.modality, adapter=peft)
  (aside / 'README.md').write_text(model_card(facts))
  said = f'step {run.reader.step}; {len(names)} tensors as {dtype}'
  if _by_torch():
    pictures, texts = examples()
    worst = check_with_torch(
      base,
      pictures,
      texts,
      _embeddings(run, pictures, texts),
      length,
      dtype,
      adapter=aside if peft else None,
    )
    return f'{said}; PyTorch agrees on {EXAMPLES} images and texts to {worst:.1g}'
  check_with_table(base, run.track(written), dtype)
  return f'{said}; read back and compared number by number'


def _write_llava(
  config: TrainConfig,
  model: MultimodalConfig,
  reader: ParamReader,
  chat: Chat,
  transform: Transform,
  aside: Path,
) -> str:
  """Writes a LLaVA and verifies it; returns what to say of it."""
  dtype, modality = cast(ExportDtype, _DTYPE.value), cast(Modality, _TRACK.value)
  track = multimodal_track(model, modality, reader.read, reader.shapes)
  names = write_llava(aside, model, track, chat, transform, dtype=dtype)
  (aside / 'README.md').write_text(model_card(_facts(config, LLAVA, modality)))
  said = f'step {reader.step}; {len(names)} tensors as {dtype}'
  if not _by_torch():
    check_with_table(aside, track, dtype)
    return f'{said}; read back and compared number by number'
  params = {name: reader.read(name) for name in reader.shapes}
  answerer = Answerer(model, params, chat, transform, config.data.length)
  pictures, _ = examples()
  rng = np.random.default_rng(0)  # not drawn from
  pixels = np.stack([apply(transform, np.asarray(p), rng) for p in pictures])
  questions = [DESCRIBE] * len(pictures)
  expected = answerer.logits(pixels, questions, modality)
  worst = check_llava_with_torch(aside, pictures, questions, *expected, dtype)
  return f'{said}; the logits of PyTorch agree on {EXAMPLES} images to {worst:.1g}'


def _by_torch() -> bool:
  return _VERIFY.value == 'torch' or (_VERIFY.value == 'auto' and has_torch())


def _embeddings(run: _Run, pictures: list, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  params = {name: run.reader.read(name) for name in run.reader.shapes}
  encoder = Encoder(run.model, params, run.tokenizer, run.transform, run.config.data.length)
  rng = np.random.default_rng(0)  # not drawn from
  pixels = np.stack([apply(run.transform, np.asarray(p), rng) for p in pictures])
  return encoder.embed_images(pixels, run.modality), encoder.embed_texts(texts)


def _facts(
  config: TrainConfig, architecture: str, modality: Modality, *, adapter: bool = False
) -> Facts:
  scores = _scores()
  data = {'data.real': config.data.real, 'data.generated': config.data.generated}
  data |= {f'data.more[{i}]': more.spec for i, more in enumerate(config.data.more)}
  return Facts(
    name=open_path(_OUTPUT.value).name,
    architecture=architecture,
    track=modality,
    objective=config.objective,
    data=data,
    licences={spec: _licence(spec) for spec in data.values() if spec},
    scores=scores.get('scores', {}),
    command=scores.get('command', ()),
    versions=versions(),
    adapter=adapter,
  )


def _licence(spec: str) -> str:
  try:
    return open_source(spec).licence
  except UserError as error:  # of a machine that is not this one, perhaps
    print(f'licence of {spec}: not read ({error})', file=sys.stderr)
    return ''


def _scores() -> dict:
  if not _SCORES.value:
    return {}
  try:
    found = json.loads(read_bytes(open_path(_SCORES.value)))
    return {
      'scores': {k: float(v) for k, v in found['scores'].items()},
      'command': found['command'],
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'--scores: {_SCORES.value} cannot be read ({error!r}); name the --output of '
      'align_jax.evaluate'
    ) from error


if __name__ == '__main__':
  cli.run(main)
