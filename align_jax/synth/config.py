"""The typed form of an engine config, see `configs/synth_emoji.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from align_jax.errors import require
from align_jax.synth.annotation.annotate import AnnotationConfig
from align_jax.synth.categories import CategoryConfig
from align_jax.synth.filtration.config import FiltrationConfig
from align_jax.synth.generators.make import build_config
from align_jax.synth.plan import ImageConfig
from align_jax.synth.prompts.make import PromptConfig
from align_jax.synth.report.data import ReportConfig
from align_jax.synth.trained import Trained


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """One generator of a run.

  Attributes:
    name: in rows and ids: a-z, 0-9 and _.
    kind: `flow`, `cvae`, `diffusers` or `external`.
    weight: its share of the images, relative to the others'.
    model: of `flow` and `cvae`: which run, or how it is trained.
    settings: those of its kind, see `generators/`.
  """

  name: str
  kind: Literal['flow', 'cvae', 'diffusers', 'external']
  weight: float = 1.0
  model: Trained = dataclasses.field(default_factory=Trained)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def values(self) -> dict[str, Any]:
    """Kind and settings, as `generators.make` takes them."""
    return {'kind': self.kind, **self.settings}


@dataclasses.dataclass(frozen=True)
class SynthConfig:
  """A run of the engine.

  Attributes:
    real: source spec of real images: what categories are, what crops are compared with, what the
      page shows beside; '' for none.
    embedder: what embeds images and texts: its similarity decides what is kept.
    text_embedder: what embeds names and prompts, see `api.load_text_embedder`; '' for `embedder`.
    categories, prompts, images, annotation, filtration, report: of the stages.
    generators: at least one.
    partners: of a generated image: `none`, or `category`: a real image of its category, by lot
      (`pair_id`), for the paired terms of GMAIL.
    licence: of the generated images.
  """

  embedder: Trained
  categories: CategoryConfig
  prompts: PromptConfig
  generators: tuple[GeneratorConfig, ...]
  images: ImageConfig
  real: str = ''
  annotation: AnnotationConfig = dataclasses.field(default_factory=AnnotationConfig)
  filtration: FiltrationConfig = dataclasses.field(default_factory=FiltrationConfig)
  report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
  partners: Literal['none', 'category'] = 'none'
  licence: str = ''
  text_embedder: str = ''

  def __post_init__(self) -> None:
    require(bool(self.generators), 'config.generators', 'none; name at least one')
    names = [generator.name for generator in self.generators]
    for index, generator in enumerate(self.generators):
      where = f'config.generators[{index}]'
      good = generator.name.replace('_', 'a')
      require(
        good.isascii() and good.isalnum() and good == good.lower(),
        f'{where}.name',
        f'{generator.name!r} is not made of a-z, 0-9 and _',
      )
      require(names.count(generator.name) == 1, f'{where}.name', f'{generator.name!r} is twice')
      require(generator.weight > 0, f'{where}.weight', f'{generator.weight} must be above 0')
      build_config(generator.values, f'{where}.settings')
      if generator.kind in ('flow', 'cvae'):
        generator.model.check(f'{where}.model')
      else:
        require(generator.model == Trained(), f'{where}.model', f'{generator.kind} has none')
    self.embedder.check('config.embedder')
