"""Safetensors files beside those of the library safetensors, to the byte."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.checkpoints import safetensors_io
from calrec_jax.checkpoints.safetensors_io import TensorToWrite
from calrec_jax.errors import CalrecError

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(6, 4)).astype(np.float32),
    "a.half": RNG.normal(size=(5, 2, 3)).astype(ml_dtypes.bfloat16),
    "b": RNG.normal(size=(7,)).astype(np.float16),
    "c": RNG.normal(size=(2, 1)),
    "empty": np.zeros((0, 3), np.float32),
}


def to_write(name: str, array: np.ndarray, rows: int = 2) -> TensorToWrite:
    pieces = [array[n : n + rows] for n in range(0, len(array), rows)]
    return TensorToWrite(name, array.dtype, array.shape, pieces)


def raw(path, header, data: bytes = b"") -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_io.write(path, [to_write(*item) for item in TENSORS.items()])
    found = dict(safetensors.deserialize(path.read_bytes()))
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert found[name]["dtype"] == {2: "F16", 4: "F32", 8: "F64"}[array.itemsize] or (
            found[name]["dtype"] == "BF16" and array.dtype == ml_dtypes.bfloat16
        )
        assert tuple(found[name]["shape"]) == array.shape
        assert bytes(found[name]["data"]) == array.tobytes()
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_library_writes_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(TENSORS, path, metadata={"format": "pt"})
    found = safetensors_io.read_header(path)
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        rows = len(array)
        assert found[name].read_rows(0, rows).tobytes() == array.tobytes()
        part = found[name].read_rows(rows // 2, rows)
        assert part.dtype == array.dtype and part.shape == (rows - rows // 2, *array.shape[1:])
        assert part.tobytes() == array[rows // 2 :].tobytes()


def test_the_bytes_of_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_io.write(path, [to_write("a", np.array([1.0, 2.0], np.float32))])
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2)
    assert path.read_bytes() == expected


def test_pieces_may_be_views_in_any_order_of_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    safetensors_io.write(path, [to_write("a", array)])
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["a"], array)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    def pieces():
        yield np.zeros(1, np.float32)
        raise OSError("no more")

    tensor = TensorToWrite("a", np.dtype(np.float32), (2,), pieces())
    with pytest.raises(OSError, match="no more"):
        safetensors_io.write(tmp_path / "x.safetensors", [tensor])
    assert not list(tmp_path.iterdir())


def test_whole_numbers_are_not_written(tmp_path):
    with pytest.raises(CalrecError, match="^ids is of int32, which cannot be written$"):
        safetensors_io.write(tmp_path / "x", [to_write("ids", np.arange(3, dtype=np.int32))])
    assert not list(tmp_path.iterdir())


def test_each_cut_of_a_file_is_reported(tmp_path):
    path, cut = tmp_path / "x.safetensors", tmp_path / "cut.safetensors"
    safetensors_io.write(path, [to_write(*item) for item in TENSORS.items()])
    whole = path.read_bytes()
    data = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 1, 7, 8, 9, data - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(CalrecError, match="cut.safetensors is no safetensors file, or is cut"):
            safetensors_io.read_header(cut)
    for length in (data, data + 1, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(CalrecError, match=r"is cut off: .* ends at byte \d+, the file at"):
            safetensors_io.read_header(cut)
    cut.write_bytes(whole[:-1])
    with pytest.raises(CalrecError) as error:
        safetensors_io.read_header(cut)
    assert str(error.value) == (
        f"{cut} is cut off: c [2, 1] ends at byte {len(whole)}, the file at {len(whole) - 1}"
    )


BROKEN = {
    "no JSON": (b"{broken", "is no safetensors file: JSONDecodeError"),
    "no UTF-8": (b'{"\xff": 1}', "is no safetensors file: UnicodeDecodeError"),
    "a list": ([1], "is no safetensors file: AttributeError"),
    "an entry that is none": ({"a": 3}, "is no safetensors file: TypeError"),
    "an entry without offsets": (
        {"a": {"dtype": "F32", "shape": [2]}},
        "is no safetensors file: KeyError('data_offsets')",
    ),
    "three offsets": (
        {"a": entry(offsets=(0, 8, 9))},
        "is no safetensors file: ValueError",
    ),
    "whole numbers": ({"a": entry("I8")}, "a is of I8, and weights are read of F64, F32, F16, BF"),
    "offsets of another size": ({"a": entry(shape=(3,))}, "a [3] does not fill its 8 bytes"),
    "offsets before the data": ({"a": entry(offsets=(-8, 0))}, "a [2] does not fill its 8 bytes"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_safetensors_file_is_one_line(tmp_path, broken):
    header, message = BROKEN[broken]
    path = tmp_path / "x.safetensors"
    raw(path, header, bytes(8))
    with pytest.raises(CalrecError) as error:
        safetensors_io.read_header(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pickle_by_another_name_is_no_safetensors_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x04\x95" + bytes(200))
    with pytest.raises(CalrecError, match="is no safetensors file"):
        safetensors_io.read_header(path)


@given(
    rows=st.integers(0, 3000),
    row_bytes=st.integers(1, 1 << 28),
    multiple=st.sampled_from([1, 2, 8, 128]),
)
def test_blocks_are_all_rows_in_order_and_small(rows, row_bytes, multiple):
    blocks = list(safetensors_io.row_blocks(rows, row_bytes, multiple))
    assert [row for block in blocks for row in range(*block)] == list(range(rows))
    for first, last in blocks:
        assert first % multiple == 0
        small = (last - first) * row_bytes <= safetensors_io._MAX_PIECE_BYTES
        assert small or last - first <= multiple
