"""Where pairs come from. `open_pairs(spec)` opens any of them."""

from collections.abc import Callable, Mapping

from align_jax.data.pair_record import PairSource
from align_jax.data.pair_sources.emoji_tasks import open_emoji_tasks
from align_jax.data.pair_sources.mmeb import open_mmeb_sets
from align_jax.data.pair_sources.options import choice_option
from align_jax.data.pair_sources.records import PAIRINGS, RecordPairs
from align_jax.data.pair_sources.sugarcrepe import open_sugarcrepe
from align_jax.data.sources import OPENERS as RECORD_OPENERS
from align_jax.data.sources import ParsedSpec, open_source, parse_spec, with_options
from align_jax.errors import UserError, did_you_mean

__all__ = ['open_pairs']

# options of a spec that say how records become pairs; the others are the source's
_OWN = ('pairs', 'partners', 'missing')


def open_pairs(spec: str) -> PairSource:
  """Opens what a spec names.

  `mmeb:`, `sugarcrepe:` and `emojitasks:` hold pairs. Every other source holds records; its spec
  takes three options more: `pairs`, one of image_to_caption, caption_to_image and
  generated_to_real; `partners`, the spec of the real images (its `&` written `%26`); `missing`,
  `error` or `skip`, for records without a caption or partner.

  Raises:
    UserError: an unknown scheme or option, a missing path, an empty source, damaged files.
  """
  parsed = parse_spec(spec)
  opener = OPENERS.get(parsed.scheme)
  if opener is not None:
    return opener(parsed)
  if parsed.scheme not in RECORD_OPENERS:
    known = (*OPENERS, *RECORD_OPENERS)
    raise UserError(f"{spec}: unknown scheme '{parsed.scheme}'{did_you_mean(parsed.scheme, known)}")
  return _open_records(parsed)


def _open_records(spec: ParsedSpec) -> RecordPairs:
  pairing = spec.options.get('pairs', PAIRINGS[0])
  if pairing not in PAIRINGS:
    raise UserError(f"{spec.text}: pairs='{pairing}'{did_you_mean(pairing, PAIRINGS)}")
  partners = spec.options.get('partners')
  if partners and pairing != 'generated_to_real':
    raise UserError(f'{spec.text}: partners= is for pairs=generated_to_real; leave it out')
  skip = choice_option(spec, 'missing', ('error', 'skip')) == 'skip'
  return RecordPairs(
    open_source(with_options(spec.text, **dict.fromkeys(_OWN))),
    pairing,
    partners=open_source(partners) if partners else None,
    skip=skip,
    spec=spec.text,
  )


OPENERS: Mapping[str, Callable[[ParsedSpec], PairSource]] = {
  'emojitasks': open_emoji_tasks,
  'mmeb': open_mmeb_sets,
  'sugarcrepe': open_sugarcrepe,
}
