"""Contents a second of the multimodal model as an embedder, against the same model in PyTorch.

  python -m benchmarks.embedding [--contents=96] [--batch=32] [--rounds=7] [--width=512] [--depth=6]
    [--image_size=224] [--patch=32] [--dtype=float32] [--level=hierarchical]

A `LlavaForConditionalGeneration` with random weights, a CLIP tower and a Qwen2 decoder, is saved
and read by `interop.llava`: both sides have the same numbers. A third of the contents is text, a
third images, a third both.

- `model`: the compiled function under `ContentEmbedder` against `transformers`' `.model`, which has
  no head, in `torch.inference_mode` with fused attention: the same tokens, padding and batches, the
  pixels ready on both sides.
- `embedder`: `ContentEmbedder` against what does the same in PyTorch: the same templates and
  tokenizer, images decoded by the same function on as many threads, batches of contents of one kind
  and about one length, padded to the longest. Ours pads to one of a few lengths.

`cpu_ratio` compares what all threads of the process worked instead of the clock: on a machine that
others use, PyTorch's threads wait for each other at the end of every operation, and the clock
flatters us. One core (`taskset -c 0 python -m …`) leaves nothing to wait for.

The embeddings of both sides are compared, and the run fails where one differs by more than 1e-4.
`flops_ratio` is ours over the peer's: of the last block ours computes no more than the last token
looks at.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.config import build
from align_jax.data.chat import Chat, train_chat
from align_jax.data.embed_prompt import REQUEST, SYSTEM, embed_turns
from align_jax.data.pair_record import Content
from align_jax.data.transforms import Transform, apply_to_bytes
from align_jax.embedder import ContentEmbedder, make_embed
from align_jax.errors import UserError
from align_jax.interop.folder import load_folder, read_folder
from align_jax.models.flat import Params, Skeleton, count
from align_jax.models.multimodal import Multimodal, MultimodalConfig
from benchmarks import common
from benchmarks.photos import jpeg, photograph

FORMULA = (
  'matrix products at 2 FLOPs a multiply-add, padding included: patches, blocks of the tower, the '
  'projector, blocks of the decoder; no head'
)
TOLERANCE = 1e-4
_INSTRUCTION = 'Find the picture that shows this.'
_WORDS = 'red green blue round small large cat dog tree house car boat beside above below two three'


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    contents: of all kinds together.
    batch: contents of a batch, of both sides.
    rounds: of each side.
    width, depth, heads, kv_heads, mlp_dim: of the decoder.
    image_width, image_depth, image_heads: of the tower.
    image_size, patch: in pixels.
    length: the longest prompt.
    words: the most of a text; from a sixth of that on.
    vocab_size: at most.
    dtype: of the computation, float32 or bfloat16.
    level: of the prompts.
  """

  contents: int = 96
  batch: int = 32
  rounds: int = 7
  width: int = 512
  depth: int = 6
  heads: int = 8
  kv_heads: int = 2
  mlp_dim: int = 1408
  image_width: int = 384
  image_depth: int = 6
  image_heads: int = 6
  image_size: int = 224
  patch: int = 32
  length: int = 256
  words: int = 48
  vocab_size: int = 2000
  dtype: str = 'float32'
  level: str = 'hierarchical'


class Batch(NamedTuple):
  """Contents that are embedded together, as both models take them.

  Attributes:
    tokens, segment: `[batch, length]`, padded on the left; segment 0 is padding.
    images: `[batch, images, size, size, 3]`, uint8; None: there are none.
  """

  tokens: np.ndarray
  segment: np.ndarray
  images: np.ndarray | None


def make_contents(options: Options) -> list[Content]:
  """Texts, images, and both, in turns."""
  rng = np.random.default_rng(0)
  words = _WORDS.split()
  out = []
  for number in range(options.contents):
    many = int(rng.integers(max(1, options.words // 6), options.words + 1))
    text = '' if number % 3 == 1 else ' '.join(words[i] for i in rng.integers(0, len(words), many))
    side = options.image_size
    image = jpeg(photograph(number, 2 * side, 3 * side // 2)) if number % 3 else None
    out.append(Content(text, () if image is None else (image,), str(number)))
  return out


def make_peer(options: Options, chat: Chat) -> Any:
  """The model in PyTorch, with weights large enough that contents come out apart."""
  import torch
  import transformers

  if options.dtype not in ('float32', 'bfloat16'):
    raise UserError(f"--dtype: {options.dtype!r} is neither 'float32' nor 'bfloat16'")
  config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(
      hidden_size=options.image_width,
      intermediate_size=4 * options.image_width,
      num_hidden_layers=options.image_depth,
      num_attention_heads=options.image_heads,
      image_size=options.image_size,
      patch_size=options.patch,
    ),
    text_config=transformers.Qwen2Config(
      vocab_size=chat.vocab_size,
      hidden_size=options.width,
      intermediate_size=options.mlp_dim,
      num_hidden_layers=options.depth,
      num_attention_heads=options.heads,
      num_key_value_heads=options.kv_heads,
      max_position_embeddings=options.length,
      pad_token_id=chat.pad_id,
      eos_token_id=chat.end_id,
      bos_token_id=None,
    ),
    image_token_index=chat.image_id,
    # the last layer is read: LLaVA reads the one before, and then the peer computes one for nothing
    vision_feature_layer=-1,
    vision_feature_select_strategy='default',
  )
  torch.manual_seed(0)
  model = transformers.LlavaForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      if p.ndim == 1:
        p.add_(0.1 * torch.randn_like(p))
      else:
        p.copy_(torch.randn_like(p) * (0.5 if 'embed' in name else p[0].numel() ** -0.5))
  return model


class Peer:
  """The model in PyTorch, and around it what `ContentEmbedder` does."""

  def __init__(self, options: Options, model: Any, ours: ContentEmbedder, config: MultimodalConfig):
    import torch

    self._torch, self._batch = torch, options.batch
    self._chat, self._level, self._transform = ours.chat, ours.level, ours.transform
    self._length = ours.length
    self.parameters = sum(p.numel() for p in model.parameters())
    self._dtype = getattr(torch, options.dtype)
    # in the head's stead the last hidden states
    self._model = model.model.to(self._dtype)
    self._model.set_attn_implementation('sdpa')
    self._mean = torch.tensor(config.image.mean)[:, None, None]
    self._std = torch.tensor(config.image.std)[:, None, None]

  def prepare(self, batch: Batch) -> dict[str, Any]:
    """What the model takes."""
    torch = self._torch
    out = {
      'input_ids': torch.tensor(batch.tokens, dtype=torch.long),
      'attention_mask': torch.tensor(batch.segment, dtype=torch.long),
    }
    if batch.images is not None:
      pixels = torch.tensor(batch.images).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
      out['pixel_values'] = ((pixels / 255 - self._mean) / self._std).to(self._dtype)
    return out

  def embed(self, inputs: dict[str, Any]) -> np.ndarray:
    """The last token's hidden state, unit norm."""
    torch = self._torch
    with torch.inference_mode():
      x = self._model(**inputs, use_cache=False).last_hidden_state[:, -1].float()
      return torch.nn.functional.normalize(x, dim=-1).numpy()

  def __call__(self, contents: Sequence[Content]) -> np.ndarray:
    out: list[Any] = [None] * len(contents)
    with ThreadPoolExecutor() as threads:
      for rows, tokens, segment in self.batches(contents):
        images = None
        if contents[rows[0]].images:
          images = np.asarray(list(threads.map(self._pixels, [contents[i] for i in rows])))
        found = self.embed(self.prepare(Batch(tokens, segment, images)))
        for row, vector in zip(rows, found, strict=True):
          out[row] = vector
    return np.stack(out)

  def batches(self, contents: Sequence[Content]) -> Iterator[tuple[list[int], Any, Any]]:
    """Contents of one kind, the longest first, and their prompts padded to the longest."""
    for images in sorted({len(content.images) for content in contents}):
      rows = [i for i, content in enumerate(contents) if len(content.images) == images]
      chats = [embed_turns(contents[i], 'query', _INSTRUCTION, self._level) for i in rows]
      tokens, segment = self._chat.prompts(chats, images, self._length)
      order = np.argsort(-segment.sum(axis=1), kind='stable')
      for start in range(0, len(order), self._batch):
        some = order[start : start + self._batch]
        cut = self._length - int(segment[some].sum(axis=1).max())
        yield [rows[i] for i in some.tolist()], tokens[some, cut:], segment[some, cut:]

  def _pixels(self, content: Content) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [apply_to_bytes(self._transform, image, rng) for image in content.images]


def read_ours(model: Any, options: Options) -> tuple[MultimodalConfig, Params]:
  """Reads the peer's weights as a user does."""
  with tempfile.TemporaryDirectory(prefix='align_jax-') as folder:
    model.save_pretrained(folder)
    imported = read_folder(Path(folder))
    fields = {**imported.model, 'length': options.length}
    for part in ('image', 'decoder'):
      fields[part] = {**fields[part], 'dtype': options.dtype}
    config = build(MultimodalConfig, fields, 'config.model')
    shapes = Skeleton(lambda rngs: Multimodal(config, rngs)).shapes
    return config, {k: jnp.asarray(v) for k, v in load_folder(imported, shapes).items()}


def flops(config: MultimodalConfig, batch: Batch, *, last: bool) -> int:
  """Operations of a batch forward; `last`: of the last block the last token's alone."""
  decoder, (rows, length) = config.decoder, batch.tokens.shape
  total = decoder.flops(length)
  if last:
    own = 2 * decoder.width * decoder.head_dim * 2 * decoder.heads + 6 * decoder.width * (
      decoder.mlp_dim
    )
    total -= (length - 1) * (own + 4 * length * decoder.heads * decoder.head_dim)
  images = 0 if batch.images is None else batch.images.shape[1]
  return rows * (total + images * (config.image.flops + config.projector_flops))


def measured(work: Callable[[], Any], busy: list[float]) -> Callable[[], float]:
  """A side that returns its seconds of the clock, and adds those of CPU time to a list."""

  def turn() -> float:
    start, worked = time.perf_counter(), time.process_time()
    work()
    busy.append(time.process_time() - worked)
    return time.perf_counter() - start

  return turn


def largest_difference(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> float:
  """How far the embeddings are apart.

  Raises:
    UserError: too far, in float32.
  """
  difference = float(np.abs(ours - theirs).max())
  if dtype == 'float32' and not difference <= TOLERANCE:
    raise UserError(f'the two sides differ by {difference:.2g}: they are not the same model')
  return difference


def run(options: Options) -> dict[str, Any]:
  """Measures both parts."""
  common.need('torch')
  common.need('transformers')
  import torch

  keeps = common.keep_memory()
  torch.set_num_threads(common.cores())
  contents = make_contents(options)
  texts = [*(content.text for content in contents), *2 * [SYSTEM, REQUEST, _INSTRUCTION]]
  patches = (options.image_size // options.patch) ** 2
  chat = train_chat(texts, options.vocab_size, patches)
  model = make_peer(options, chat)
  config, params = read_ours(model, options)
  level: Any = options.level
  transform = Transform(options.image_size)
  ours = ContentEmbedder(config, params, chat, transform, options.length, level, options.batch)
  peer = Peer(options, model, ours, config)

  batches = []
  for rows, tokens, segment in peer.batches(contents):
    images = None
    if contents[rows[0]].images:
      images = np.asarray([peer._pixels(contents[i]) for i in rows])
    batches.append(Batch(tokens, segment, images))
  embed = make_embed(config)
  placed = [Batch(*(None if x is None else jnp.asarray(x) for x in batch)) for batch in batches]
  ready = [peer.prepare(batch) for batch in batches]

  def compiled() -> list[Any]:
    return jax.block_until_ready([embed(params, *batch) for batch in placed])

  def eager() -> list[np.ndarray]:
    return [peer.embed(inputs) for inputs in ready]

  def whole() -> np.ndarray:
    return ours(contents, 'query', _INSTRUCTION)

  common.say('compiling')
  found = np.concatenate([np.asarray(x) for x in compiled()]), np.concatenate(eager())
  differences = [largest_difference(*found, options.dtype)]
  differences.append(largest_difference(whole(), peer(contents), options.dtype))
  counted = {
    side: sum(flops(config, batch, last=side == 'ours') for batch in batches)
    for side in ('ours', 'peer')
  }
  parts = {
    'model': {'ours': compiled, 'peer': eager},
    'embedder': {'ours': whole, 'peer': lambda: peer(contents)},
  }
  out: dict[str, Any] = {}
  for (name, sides), difference in zip(parts.items(), differences, strict=True):
    common.say(name)
    busy: dict[str, list[float]] = {'ours': [], 'peer': []}
    taken = common.in_turns(
      {side: measured(work, busy[side]) for side, work in sides.items()}, options.rounds
    )
    out[name] = {
      'ratio': common.ratios(taken, target=1.0),
      'cpu_ratio': common.spread(
        [peer / ours for ours, peer in zip(busy['ours'], busy['peer'], strict=True)]
      ),
      'largest_difference': difference,
    }
    for side, values in taken.items():
      seconds = common.spread(values)
      out[name][side] = {
        'contents_per_second': common.rounded(len(contents) / seconds['median']),
        'seconds': seconds,
        'cpu_seconds': common.spread(busy[side]),
      }
      if name == 'model':
        speed = counted[side] / seconds['median'] / 1e9
        out[name][side]['gflops_per_second'] = common.rounded(speed)
  cosine = found[0] @ found[0].T
  return {
    'benchmark': 'embedding',
    **common.machine(),
    'threads': common.cores(),
    'keeps_freed_memory': keeps,
    'model_kind': 'LLaVA: CLIP tower, Qwen2 decoder',
    **{k: v for k, v in dataclasses.asdict(options).items() if k != 'vocab_size'},
    'patches': config.image.patches,
    'lengths': [batch.tokens.shape[1] for batch in batches],
    'parameters': count(params),
    'peer_parameters': peer.parameters,
    'flops': counted,
    'flops_formula': FORMULA,
    'flops_ratio': common.rounded(counted['ours'] / counted['peer']),
    'median_cosine': common.rounded(float(np.median(cosine[np.triu_indices(len(cosine), 1)]))),
    **out,
  }


if __name__ == '__main__':
  common.command(Options, run, __doc__.splitlines()[0])
