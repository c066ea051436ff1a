"""Checksums of a dataset's records, which do not depend on the records' order."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from calrec_jax.text.items import Fields, UserSequence

_canonical = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


def _digest(*record: Any) -> int:
    digest = hashlib.blake2b(_canonical(record).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def sequence_digest(sequence: UserSequence) -> int:
    """128 bits of BLAKE2b of the JSON array [user id, item ids, time stamps or null]."""
    return _digest(sequence.user_id, sequence.item_ids, sequence.timestamps)


def item_digest(item_id: str, fields: Fields) -> int:
    """128 bits of BLAKE2b of the JSON array [item id, fields by their sorted names]."""
    return _digest(item_id, fields)


def checksum(digests: int) -> str:
    """A sum of digests modulo 2**128, in hexadecimal."""
    return f"{digests % 2**128:032x}"
