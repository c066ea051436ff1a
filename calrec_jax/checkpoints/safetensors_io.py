"""Safetensors files, read and written a piece of a tensor at a time.

The library reads through a memory map and writes tensors that are all in memory; here a tensor may
be larger than what is to spare. The format: 8 bytes with the header's length, the header in JSON
{name: {dtype, shape, data_offsets}}, the tensors' bytes, little-endian.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
_LARGEST_HEADER = 100_000_000  # bytes; that of the library
_MOST_TO_A_PIECE = 1 << 26  # bytes that are read or written at once


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is.

    Attributes:
      start: its first byte in the file.
    """

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Of one step along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read_rows(self, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` of the first axis."""
        with self.path.open("rb") as file:
            file.seek(self.start + first * self.row_bytes)
            count = (last - first) * math.prod(self.shape[1:])
            found = np.fromfile(file, self.dtype, count)
        return found.reshape(last - first, *self.shape[1:])


def read_header(path: pathlib.Path) -> dict[str, TensorInfo]:
    """The tensors of a file.

    Raises:
      CalrecError: it is no safetensors file, is cut off, or holds numbers of a kind that weights
        are not made of; the line names the tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LARGEST_HEADER):
            raise CalrecError(f"{path} is no safetensors file, or is cut off in its header")
        try:
            header = json.loads(file.read(length))
            entries = {name: e for name, e in header.items() if name != "__metadata__"}
            found = {n: _info(path, n, entry, 8 + length) for n, entry in entries.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CalrecError(f"{path} is no safetensors file: {error!r}") from error
    for name, info in found.items():
        end = info.start + math.prod(info.shape) * info.dtype.itemsize
        if end > size:
            raise CalrecError(
                f"{path} is cut off: {name} {list(info.shape)} ends at byte {end}, the file at "
                f"{size}"
            )
    return found


def _info(path: pathlib.Path, name: str, entry: Mapping, data: int) -> TensorInfo:
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
    """A tensor to come.

    Attributes:
      pieces: its rows in order, C-contiguous arrays of `dtype`.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: pathlib.Path, tensors: Sequence[TensorToWrite]) -> None:
    """Writes one file; the pieces are asked for in order.

    Raises:
      CalrecError: a tensor is of a kind of numbers that the format has not.
      OSError: the disk is full or not writable; the file is not there then.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which transformers asks for
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
      multiple: blocks begin at multiples of it.
    """
    step = max(1, _MOST_TO_A_PIECE // (row_bytes * multiple)) * multiple
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
