"""A run of the engine: its config, its folder, and how each part of each stage is made."""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax import api
from align_jax.data import shards as shards_lib
from align_jax.data.images import decode_image
from align_jax.data.sources import open_source
from align_jax.data.sources.base import Source
from align_jax.encoder import Encoder
from align_jax.files import write_file
from align_jax.parallel.mesh import MeshConfig, make_mesh
from align_jax.synth import pack
from align_jax.synth.annotation.annotate import annotate_part
from align_jax.synth.categories import EmbedTexts, make_categories
from align_jax.synth.config import SynthConfig
from align_jax.synth.draw import draw_part
from align_jax.synth.filtration.decide import Decider
from align_jax.synth.filtration.references import References, make_references
from align_jax.synth.filtration.score import score_part
from align_jax.synth.generators.external import ExternalImages
from align_jax.synth.generators.make import make_external, make_generator
from align_jax.synth.plan import Request, Share, make_plan
from align_jax.synth.prompts.make import diversity_values, make_prompts, measure_diversity
from align_jax.synth.rows import (
  AnnotationRow,
  Category,
  DecisionRow,
  Generator,
  ImageRow,
  PromptRow,
  ScoreRow,
)
from align_jax.synth.settings import SHARDS, STAGES, stage_settings
from align_jax.synth.stage import Stage, open_stage

NOTES = 'notes.json'  # in the folders of categories and prompts
_EMBEDDINGS = 'embeddings'
Seen = Callable[[int], None]


class Run:
  """A run of the engine. Models are trained and loaded when a stage first needs them.

  Attributes:
    config: of the run.
    workdir: its folder.
    parts: how many parts the images are cut into.
  """

  def __init__(self, config: SynthConfig, workdir: Path):
    self.config, self.workdir = config, workdir
    self.parts = config.images.parts
    self._stages: dict[str, Stage] = {}
    self._decided = 0  # parts that the decider knows

  def stage(self, name: str) -> Stage:
    """Opens a stage; its key follows from its settings and the stages before it."""
    if name not in self._stages:
      index = STAGES.index(name)
      before = self.stage(STAGES[index - 1]).key if index else ''
      parts = 1 if name in ('categories', 'prompts') else self.parts
      self._stages[name] = open_stage(
        self.workdir, name, stage_settings(self.config, name), before, parts
      )
    return self._stages[name]

  def is_done(self, name: str, part: int) -> bool:
    stage = self.stage(name)
    if name == SHARDS:
      return pack.is_packed(str(stage.folder), part, self.parts)
    return stage.is_done(part)

  def kept(self) -> int:
    """How many images are in the shards."""
    manifest = shards_lib.load_manifest(str(self.workdir / SHARDS))
    return manifest.total if manifest is not None else 0

  def part_size(self, part: int) -> int:
    """How many images a part asks for."""
    size = self.config.images.part_size
    return min(size, self.config.images.count - part * size)

  def make(self, name: str, part: int, seen: Seen = lambda count: None) -> None:
    """Makes one part of a stage; those before it must be there.

    Args:
      name: of the stage.
      part: which; 0 for categories and prompts.
      seen: is told of so many more images.

    Raises:
      UserError: what the stage raises.
    """
    makers: Mapping[str, Callable[[int, Seen], None]] = {
      'categories': self._make_categories,
      'prompts': self._make_prompts,
      'generate': self._generate,
      'annotate': self._annotate,
      'score': self._score,
      'filter': self._filter,
      SHARDS: self._pack,
    }
    makers[name](part, seen)

  # what the stages are made with

  def train(self, stages: Sequence[str] = STAGES) -> None:
    """Trains the models that stages need; all processes do it together.

    Several processes also load them together: which checkpoint is the newest whole one, they agree
    on. A process alone loads what a stage needs when it needs it.

    Args:
      stages: names; the page needs the embedder after any of them.
    """
    draws = 'generate' in stages
    _ = self.embedder_spec, draws and self._runs
    if jax.process_count() > 1:
      _ = self.embedder, draws and self.generators

  @functools.cached_property
  def real(self) -> Source | None:
    return open_source(self.config.real) if self.config.real else None

  @functools.cached_property
  def embedder_spec(self) -> str:
    return self.config.embedder.find(
      self.workdir / 'models' / 'embedder', 'embedder', 'config.embedder'
    )

  @functools.cached_property
  def embedder(self) -> Encoder:
    return api.load(self.embedder_spec).encoder

  @functools.cached_property
  def embed_texts(self) -> EmbedTexts:
    if self.config.text_embedder:
      return api.load_text_embedder(self.config.text_embedder)
    return lambda texts: self.embedder.embed_texts(texts)

  @functools.cached_property
  def mesh(self) -> Mesh:
    """Of this process's own devices: the others have other parts."""
    return make_mesh(MeshConfig(), jax.local_devices())

  @functools.cached_property
  def generators(self) -> dict[str, Generator | ExternalImages]:
    out: dict[str, Generator | ExternalImages] = {}
    for index, config in enumerate(self.config.generators):
      where = f'config.generators[{index}]'
      if config.kind == 'external':
        out[config.name] = self._external[config.name]
        continue
      run = self._runs.get(config.name, '')
      out[config.name] = make_generator(config.values, run=run, where=f'{where}.settings')
    return out

  @functools.cached_property
  def _runs(self) -> dict[str, str]:
    """The training run of each generator that has one."""
    out = {}
    for index, config in enumerate(self.config.generators):
      if config.kind in ('flow', 'cvae'):
        folder = self.workdir / 'models' / config.name
        out[config.name] = config.model.find(
          folder, config.name, f'config.generators[{index}].model'
        )
    return out

  @functools.cached_property
  def _external(self) -> dict[str, ExternalImages]:
    return {
      config.name: make_external(
        config.values, name=config.name, where=f'config.generators[{index}].settings'
      )
      for index, config in enumerate(self.config.generators)
      if config.kind == 'external'
    }

  @functools.cached_property
  def categories(self) -> list[Category]:
    return self.stage('categories').rows(0, Category)

  @functools.cached_property
  def prompts(self) -> list[PromptRow]:
    return self.stage('prompts').rows(0, PromptRow)

  @functools.cached_property
  def plan(self) -> list[list[Request]]:
    """What each part asks for."""
    known = {category.name for category in self.categories}
    shares = []
    for config in self.config.generators:
      own = None
      if config.name in self._external:
        own = tuple(row for row in self._external[config.name].rows() if row.category in known)
      shares.append(Share(config.name, config.weight, own))
    counts = {category.name: category.real_images for category in self.categories}
    return make_plan(self.config.images, self.categories, self.prompts, shares, counts)

  @functools.cached_property
  def references(self) -> References:
    return make_references(
      self.config.filtration.references,
      [category.name for category in self.categories],
      self.real,
      self.embedder,
      self._real_id,
      self.workdir / 'references.safetensors',
    )

  @functools.cached_property
  def decider(self) -> Decider:
    pool: list[tuple[ImageRow, ScoreRow]] = []
    if not self.config.filtration.is_streaming:
      images = self.stage('generate').all_rows(ImageRow)
      pool = list(zip(images, self.stage('score').all_rows(ScoreRow), strict=True))
    return Decider(self.config.filtration, self.references, pool)

  @functools.cached_property
  def real_labels(self) -> list[tuple[str, tuple[str, ...]]]:
    """Id and labels of every real image; reads all records, once."""
    records = () if self.real is None else (self.real[i] for i in range(len(self.real)))
    return [(record.id, tuple(record.labels)) for record in records]

  @functools.cached_property
  def _real_id(self) -> str:
    text = json.dumps(self.real_labels)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

  @functools.cached_property
  def partners(self) -> dict[str, list[str]]:
    """Ids of the real images of each category."""
    out: dict[str, list[str]] = collections.defaultdict(list)
    if self.config.partners == 'category':
      for id_, labels in self.real_labels:
        if labels:
          out[labels[0]].append(id_)
    return out

  # the stages

  def _make_categories(self, part: int, seen: Seen) -> None:
    needs = bool(self.config.categories.extra)
    rows, notes = make_categories(self.config.categories, self.embed_texts if needs else None)
    rows = self._counted(rows)
    self._note('categories', {'notes': notes})
    self.stage('categories').write(part, rows)
    seen(len(rows))

  def _counted(self, rows: list[Category]) -> list[Category]:
    """Adds how many real images there are of each."""
    if self.real is None:
      return rows
    found = collections.Counter(label for _, labels in self.real_labels for label in set(labels))
    return [dataclasses.replace(row, real_images=found[row.name]) for row in rows]

  def _make_prompts(self, part: int, seen: Seen) -> None:
    config = self.config.prompts
    external = [row for images in self._external.values() for row in images.rows()]
    if all(generator.kind == 'external' for generator in self.config.generators):
      rows: list[PromptRow] = []
      notes = ['all images are there already: no prompts are written']
    else:
      rows, notes = make_prompts(
        config,
        self.categories,
        self.embed_texts if config.alike < 1 else None,
        seed=self.config.images.seed,
        cache=self.workdir / 'answers',
      )
    diversity = measure_diversity([*rows, *external], self.embed_texts)
    self._note('prompts', {'notes': notes, 'diversity': diversity_values(diversity)})
    self.stage('prompts').write(part, rows)
    seen(len(rows))

  def _generate(self, part: int, seen: Seen) -> None:
    rows, records = draw_part(self.plan[part], self.generators, seen)
    self.stage('generate').write(part, rows, records)

  def _annotate(self, part: int, seen: Seen) -> None:
    records = self.stage('generate').records(part)
    images = [decode_image(record.image) for record in records]
    rows = annotate_part(self.config.annotation, [r.id for r in records], images, seen)
    self.stage('annotate').write(part, rows)

  def _score(self, part: int, seen: Seen) -> None:
    images = self.stage('generate').rows(part, ImageRow)
    pictures = {r.id: decode_image(r.image) for r in self.stage('generate').records(part)}
    rows, embeddings = score_part(
      self.config.filtration,
      images,
      [pictures.get(image.id) for image in images],
      self.stage('annotate').rows(part, AnnotationRow),
      self.embedder,
      self.references,
      mesh=self.mesh,
    )
    self.stage('score').write(part, rows, arrays={_EMBEDDINGS: embeddings})
    seen(len(images))

  def embeddings(self, part: int) -> np.ndarray:
    """Of the images of a part, in their order; NaN where there is no image."""
    return self.stage('score').arrays(part)[_EMBEDDINGS]

  def _filter(self, part: int, seen: Seen) -> None:
    stage = self.stage('filter')
    # a duplicate is one of an image that was kept before
    for before in range(self._decided, part):
      self.decider.replay(
        self.stage('generate').rows(before, ImageRow),
        self.stage('score').rows(before, ScoreRow),
        self.embeddings(before),
        stage.rows(before, DecisionRow),
      )
    images = self.stage('generate').rows(part, ImageRow)
    rows = self.decider.decide(
      images,
      self.stage('annotate').rows(part, AnnotationRow),
      self.stage('score').rows(part, ScoreRow),
      self.embeddings(part),
    )
    self._decided = part + 1
    stage.write(part, rows)
    seen(len(images))

  def _pack(self, part: int, seen: Seen) -> None:
    self.open_shards()
    pack.enter_part(str(self.stage(SHARDS).folder), self.pack(part))
    seen(self.part_size(part))

  def open_shards(self) -> None:
    """Makes the folder of shards ready."""
    stage, config = self.stage(SHARDS), self.config
    pack.open_shards(str(stage.folder), stage.key, self.parts, config.images.count, config.licence)

  def pack(self, part: int) -> shards_lib.Shard:
    """Writes the shard of a part, without entering it in the manifest."""
    records = self.stage('generate').records(part)
    return pack.pack_part(
      str(self.stage(SHARDS).folder),
      part,
      self.parts,
      [dataclasses.replace(r, pair_id=self._partner(r.id, r.labels[0])) for r in records],
      self.stage('annotate').rows(part, AnnotationRow),
      self.stage('score').rows(part, ScoreRow),
      self.stage('filter').rows(part, DecisionRow),
    )

  def _partner(self, id_: str, category: str) -> str:
    """A real image of the category, by lot; '' if none is asked for, or there is none."""
    there = self.partners.get(category, [])
    if not there:
      return ''
    digest = hashlib.blake2b(f'{self.config.images.seed}\0{id_}'.encode(), digest_size=8).digest()
    return there[int.from_bytes(digest, 'big') % len(there)]

  def _note(self, name: str, values: Mapping[str, Any]) -> None:
    path = self.stage(name).folder / NOTES
    write_file(str(path), json.dumps(values, indent=1, ensure_ascii=False) + '\n')

  def notes(self, name: str) -> dict[str, Any]:
    """What should be known of how categories or prompts came."""
    return json.loads((self.stage(name).folder / NOTES).read_text(encoding='utf-8'))
