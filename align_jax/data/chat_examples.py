"""Batches of chats about images."""

import dataclasses

import numpy as np

from align_jax.data.chat import Chat
from align_jax.data.examples import Example


@dataclasses.dataclass(frozen=True)
class ChatCollate:
  """Joins examples to a batch of chats of two turns, or of several chats about each image."""

  chat: Chat
  length: int

  def __call__(self, examples: list[Example]) -> dict[str, np.ndarray]:
    if any(len(e.chats) > 1 or e.blind for e in examples):
      groups = [(e.chats, e.blind) for e in examples]
      rows = self.chat.encode_shared(groups, 1, self.length)
    else:
      rows = self.chat.encode_all([e.chats[0] for e in examples], 1, self.length)
    return {
      'image': np.stack([example.image for example in examples]),
      'tokens': rows.tokens,
      'segment': rows.segment,
      'answer': rows.answer,
      'group': np.array([example.group for example in examples], np.int32),
      'modality': np.array([example.modality for example in examples], np.int32),
      'ids': np.array([example.record_id for example in examples]),
    }
