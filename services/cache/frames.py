"""A value as it lies in Valkey: with its tenant's tag, its end, and a digest that shows damage.

    0x01 │ tag, 16 B │ end, unix ms, 8 B LE │ BLAKE2b-128 over name, tag, end, value │ value

The digest finds accidents (a flipped byte, half a value, another entry's value). Against intent the router's
own encryption stands.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

VERSION = b"\x01"
_TAG = slice(1, 17)
_END = slice(17, 25)
_DIGEST = slice(25, 41)
_VALUE = slice(41, None)


class Entry(NamedTuple):
    """One cached value."""

    value: bytes
    tag: bytes  # 16 bytes
    ends_s: float  # unix time


def pack(name: bytes, entry: Entry) -> bytes:
    """The entry as stored under `name`."""
    head = entry.tag + round(entry.ends_s * 1000).to_bytes(8, "little")
    return VERSION + head + _digest(name, head, entry.value) + entry.value


def unpack(name: bytes, stored: bytes) -> Entry | None:
    """The entry, or None when the bytes are not what `pack` made for this name."""
    head, value = stored[_TAG.start : _END.stop], stored[_VALUE]
    if stored[:1] != VERSION or stored[_DIGEST] != _digest(name, head, value):
        return None
    return Entry(value, stored[_TAG], int.from_bytes(stored[_END], "little") / 1000)


def _digest(name: bytes, head: bytes, value: bytes) -> bytes:
    digest = blake2b(len(name).to_bytes(8, "little") + name + head, digest_size=16)
    digest.update(value)
    return digest.digest()
