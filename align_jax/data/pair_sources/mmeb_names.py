"""The 36 tasks of MMEB: their names, meta-tasks, and which a model may have trained on.

Source: Jiang et al. 2024, arXiv 2410.05160 (VLM2Vec), table 1.
"""

from collections.abc import Mapping

META_TASKS: Mapping[str, tuple[str, ...]] = {
  'classification': (
    'ImageNet-1K', 'N24News', 'HatefulMemes', 'VOC2007', 'SUN397', 'Place365', 'ImageNet-A',
    'ImageNet-R', 'ObjectNet', 'Country211',
  ),
  'vqa': (
    'OK-VQA', 'A-OKVQA', 'DocVQA', 'InfographicsVQA', 'ChartQA', 'Visual7W', 'ScienceQA', 'VizWiz',
    'GQA', 'TextVQA',
  ),
  'retrieval': (
    'VisDial', 'CIRR', 'VisualNews_t2i', 'VisualNews_i2t', 'MSCOCO_t2i', 'MSCOCO_i2t', 'NIGHTS',
    'WebQA', 'FashionIQ', 'Wiki-SS-NQ', 'OVEN', 'EDIS',
  ),
  'grounding': ('MSCOCO', 'RefCOCO', 'RefCOCO-Matching', 'Visual7W-Pointing'),
}  # fmt: skip
OUT_OF_DISTRIBUTION = frozenset({
  'Place365', 'ImageNet-A', 'ImageNet-R', 'ObjectNet', 'Country211',
  'ScienceQA', 'VizWiz', 'GQA', 'TextVQA',
  'FashionIQ', 'Wiki-SS-NQ', 'OVEN', 'EDIS',
  'RefCOCO', 'RefCOCO-Matching', 'Visual7W-Pointing',
})  # fmt: skip
NAMES = tuple(name for names in META_TASKS.values() for name in names)


def canonical_name(name: str) -> str:
  """Returns MMEB's name of a data set that a file or folder spells another way, else `name`."""
  return _BY_KEY.get(_key(name), name)


def _key(name: str) -> str:
  return name.lower().replace('_', '-')


_BY_KEY = {_key(name): name for name in NAMES}
