"""The two modalities, the one word that every room shares."""

from typing import Literal

Modality = Literal['real', 'generated']
MODALITIES: tuple[Modality, ...] = ('real', 'generated')  # position = the integer in a batch
