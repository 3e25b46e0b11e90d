"""BLEU-4 and CIDEr-D of captions against references, as the COCO captioning task reports them."""

import collections
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.errors import UserError

_LONGEST = 4  # n-grams
_SIGMA = 6.0  # of CIDEr-D's penalty for lengths that differ, words
# Abbreviations with their points, numbers with theirs, words with hyphens and apostrophes inside,
# or any other sign.
_TOKEN = re.compile(
  r'\b(?:[a-z]\.){2,}|\b(?:mr|mrs|ms|dr|st|jr|sr)\.(?=\s)|\d+(?:[.,:]\d+)*(?!\w)'
  r"|\w+(?:[-'.]\w+)*|[^\w\s]"
)
# English endings, and words, that the Penn Treebank splits.
_SPLIT = re.compile(r"(?<=\w)('s|'re|'ve|'ll|'d|'m|n't)$|(?<=^can)(not)$|(?<=^gon)(na)$")
_BRACKETS = {'(': '-lrb-', ')': '-rrb-', '[': '-lsb-', ']': '-rsb-', '{': '-lcb-', '}': '-rcb-'}
_DROPPED = frozenset('\'"`.?!,:;-–—…')  # what the COCO evaluation takes for punctuation


def words(text: str) -> list[str]:
  """Splits a caption into lower-case words, without punctuation.

  What the COCO evaluation does with the Penn Treebank tokeniser of Stanford CoreNLP, for English
  captions and without Java: brackets and other signs stay, as there.
  """
  out: list[str] = []
  for token in _TOKEN.findall(text.lower().replace('’', "'")):
    if token not in _DROPPED:
      out.extend(_SPLIT.sub(r' \1\2\3', _BRACKETS.get(token, token)).split())
  return out


def caption_scores(
  captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
  """Returns `bleu4` and `cider` of captions, one for each image.

  Args:
    captions: what the model said.
    references: of each image what people said, at least one.

  Returns: BLEU-4 in [0, 1] (papers print 100 times that) and CIDEr-D in [0, 10] (papers too).

  Raises:
    UserError: numbers that differ, an image without references, or sacrebleu is not installed.
  """
  check(captions, references)
  said = [words(caption) for caption in captions]
  known = [[words(text) for text in texts] for texts in references]
  return {'bleu4': bleu4(said, known), 'cider': float(np.mean(cider(said, known)))}


def bleu4(
  captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
  """Corpus BLEU-4 in [0, 1]: no smoothing, of several references the one nearest in length.

  Args:
    captions, references: as words; see `words`.

  Raises:
    UserError: sacrebleu is not installed.

  Source: Papineni et al. 2002 (ACL, P02-1040), computed by sacrebleu (Post 2018).
  """
  try:
    import sacrebleu  # comes with an extra
  except ImportError as error:
    raise UserError(
      'captions: the package sacrebleu is missing; pip install align_jax[captions]'
    ) from error
  most = max(len(texts) for texts in references)
  # the k-th references of all images; an image with fewer has None
  columns = [
    [' '.join(texts[k]) if k < len(texts) else None for texts in references] for k in range(most)
  ]
  score = sacrebleu.corpus_bleu(
    [' '.join(caption) for caption in captions],
    columns,  # type: ignore[arg-type]  # None is documented
    smooth_method='none',
    tokenize='none',
    force=True,
  )
  return score.score / 100


def cider(
  captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
  """CIDEr-D of every caption, `[images]` in [0, 10].

  Of n-grams, n from 1 to 4, the counts times `log(images / images whose references have it)` are
  compared: a cosine, in which no n-gram counts more often than in the reference, times a Gaussian
  of the difference in length; averaged over n and over references, times 10. Rare n-grams weigh
  most, so scores depend on what else is in the set; one image alone scores 0.

  Lengths are counted in n-grams of two words and of each order by its own n-grams, as the published
  evaluation does, so that the numbers are comparable.

  Args:
    captions, references: as words; see `words`.

  Source: Vedantam et al. 2015, arXiv 1411.5726, equations 1 to 4 and section 6 (CIDEr-D).
  """
  known = [[_counts(text) for text in texts] for texts in references]
  documents = collections.Counter(
    gram for texts in known for gram in {gram for text in texts for gram in text}
  )
  total = math.log(len(references))
  weights = {gram: total - math.log(count) for gram, count in documents.items()}
  out = np.zeros(len(captions))
  for image, (caption, texts) in enumerate(zip(captions, known, strict=True)):
    said = _Weighted(_counts(caption), weights, total)
    out[image] = np.mean([said.similarity(_Weighted(t, weights, total)) for t in texts])
  return 10 * out


def check(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
  """Raises a UserError unless there is a caption and a reference or more for each image."""
  if not captions:
    raise UserError('captions: none to score')
  if len(captions) != len(references):
    raise UserError(f'captions: {len(captions)} of them, references of {len(references)} images')
  empty = [i for i, texts in enumerate(references) if not texts]
  if empty:
    raise UserError(
      f'captions: {len(empty)} images have no reference, first number {empty[0]}; leave them out'
    )


class _Weighted:
  """A text's n-grams with their weights, apart by n."""

  def __init__(
    self, counts: Mapping[tuple[str, ...], int], weights: Mapping[tuple[str, ...], float],
    unseen: float,
  ):  # fmt: skip
    self._grams: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
    for gram, count in counts.items():
      self._grams[len(gram) - 1][gram] = count * weights.get(gram, unseen)
    self._norms = [math.sqrt(sum(w * w for w in grams.values())) for grams in self._grams]
    self._length = sum(count for gram, count in counts.items() if len(gram) == 2)

  def similarity(self, reference: '_Weighted') -> float:
    """Returns the mean over n, in [0, 1]."""
    total = 0.0
    for mine, theirs, a, b in zip(
      self._grams, reference._grams, self._norms, reference._norms, strict=True
    ):
      if a and b:
        dot = sum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs)
        total += dot / (a * b)
    delta = self._length - reference._length
    return total / _LONGEST * math.exp(-(delta**2) / (2 * _SIGMA**2))


def _counts(text: Sequence[str]) -> collections.Counter[tuple[str, ...]]:
  return collections.Counter(
    tuple(text[start : start + n])
    for n in range(1, _LONGEST + 1)
    for start in range(len(text) - n + 1)
  )
