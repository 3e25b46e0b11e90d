"""Emoji scenes: real artwork with exact ground truth, drawn on this machine. See docs/emoji.md."""

from align_jax.data.emoji.concepts import class_names
from align_jax.data.emoji.masks import decode_mask, encode_mask
from align_jax.data.emoji.pack import open_emoji

__all__ = ['class_names', 'decode_mask', 'encode_mask', 'open_emoji']
