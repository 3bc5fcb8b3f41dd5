"""What a worker says of itself, as the one JSON text that every SQL storage keeps of it. It reads no clock."""

from __future__ import annotations

from typing import Final

import msgspec

from creche._job import Presence

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Presence)


def encode_presence(presence: Presence) -> str:
    """Return it as JSON text."""
    return _ENCODER.encode(presence).decode()


def decode_presence(text: str | bytes) -> Presence:
    """Return it as it was."""
    return _DECODER.decode(text)
