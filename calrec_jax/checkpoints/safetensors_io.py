"""Safetensors files, read and written a piece of a tensor at a time.

The safetensors library reads through a memory map and writes tensors that are all in memory; here a
tensor may be larger than the memory that is left. The format: 8 bytes with the header's length, the
header in JSON {name: {dtype, shape, data_offsets}}, the tensors' bytes, little-endian.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from calrec_jax import files
from calrec_jax.errors import CalrecError

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's limit
_MAX_PIECE_BYTES = 1 << 26  # read or written at once


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
      start: the position of its first byte.
    """

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one step along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read_rows(self, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` of the first axis."""
        with self.path.open("rb") as file:
            file.seek(self.start + first * self.row_bytes)
            count = (last - first) * math.prod(self.shape[1:])
            rows = np.fromfile(file, self.dtype, count)
        return rows.reshape(last - first, *self.shape[1:])


def read_header(path: pathlib.Path) -> dict[str, TensorInfo]:
    """The tensors of a file.

    Raises:
      CalrecError: it is no safetensors file, is cut off, or holds a tensor of a dtype that weights
        do not have; the line names the tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise CalrecError(f"{path} is no safetensors file, or is cut off in its header")
        try:
            header = json.loads(file.read(length))
            entries = {name: e for name, e in header.items() if name != "__metadata__"}
            tensors = {n: _info(path, n, entry, 8 + length) for n, entry in entries.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalrecError(f"{path} is no safetensors file: {error!r}") from error
    for name, info in tensors.items():
        end = info.start + math.prod(info.shape) * info.dtype.itemsize
        if end > size:
            raise CalrecError(
                f"{path} is cut off: {name} {list(info.shape)} ends at byte {end}, the file at "
                f"{size}"
            )
    return tensors


def _info(path: pathlib.Path, name: str, entry: Mapping[str, Any], data: int) -> TensorInfo:
    """The tensor of an entry of the header; the tensors' bytes begin at byte `data`."""
    if entry["dtype"] not in DTYPES:
        raise CalrecError(
            f"{path}: {name} is of {entry['dtype']}, and weights are read of {', '.join(DTYPES)}"
        )
    shape, (begin, end) = tuple(map(int, entry["shape"])), entry["data_offsets"]
    info = TensorInfo(path, DTYPES[entry["dtype"]], shape, data + begin)
    if begin < 0 or end - begin != math.prod(shape) * info.dtype.itemsize:
        raise CalrecError(f"{path}: {name} {list(shape)} does not fill its {end - begin} bytes")
    return info


@dataclasses.dataclass(frozen=True)
class TensorToWrite:
    """A tensor that is made while it is written.

    Attributes:
      pieces: its rows in order, C-contiguous arrays of `dtype`.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]

    @property
    def num_bytes(self) -> int:
        """The bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: pathlib.Path, tensors: Sequence[TensorToWrite]) -> None:
    """Writes one file; the pieces are made in order, one at a time.

    Raises:
      CalrecError: the format has no name for the dtype of a tensor.
      OSError: the disk is full or not writable; no part of the file is left then.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which transformers requires
    end = 0
    for tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise CalrecError(f"{tensor.name} is of {tensor.dtype}, which cannot be written")
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.num_bytes],
        }
        end += tensor.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data begins at a multiple of 8
    with files.new_file(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            for piece in tensor.pieces:
                # As bytes: bfloat16 has no buffer of its own.
                file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))


def row_blocks(rows: int, row_bytes: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """(first, last) of blocks of rows that are small enough to be handled at once.

    Args:
      multiple: every block begins at a multiple of it.
    """
    step = max(1, _MAX_PIECE_BYTES // (row_bytes * multiple)) * multiple
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
