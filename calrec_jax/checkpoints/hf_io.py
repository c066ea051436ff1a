"""Checkpoints of Hugging Face's transformers, in and out, a piece of a tensor at a time.

Safetensors alone are read: other formats of weights may run code when they are loaded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from calrec_jax.checkpoints import safetensors_io, streamed
from calrec_jax.checkpoints.hf_families import read_config
from calrec_jax.checkpoints.hf_maps import Entry, entries, plain_name
from calrec_jax.checkpoints.safetensors_io import TensorInfo, TensorToWrite
from calrec_jax.errors import CalrecError
from calrec_jax.files import write_json
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder, boxed_params, unboxed

CONFIG = "config.json"
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# The small files beside weights, which other programs need to use them.
_CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint of Hugging Face's whose tensors agree with its config.json.

    Attributes:
      model_type: the family.
      config: the decoder.
      table: our parameters and their tensors.
      tensors: by name.
    """

    model_type: str
    config: DecoderConfig
    table: list[Entry]
    tensors: Mapping[str, TensorInfo]

    def dtype_of(self, entry: Entry) -> np.dtype:
        """The dtype of a parameter's tensors. Raises CalrecError where its layers differ."""
        dtypes = {self.tensors[name].dtype: name for name in entry.tensors}
        if len(dtypes) > 1:
            differing = " and ".join(f"{name} is {dtype}" for dtype, name in dtypes.items())
            raise CalrecError(f"{differing}: all layers must be of one kind")
        return next(iter(dtypes))


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """{"layers/mlp/up/kernel": shape} of a decoder's parameters, layers stacked."""
    decoder = Decoder(dataclasses.replace(config, scan_layers=True))
    tree = jax.eval_shape(lambda: boxed_params(decoder, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(unboxed(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


def read(folder: pathlib.Path) -> Weights:
    """Opens a checkpoint and checks it; its tensors are not read yet.

    Raises:
      CalrecError: there is none, its family or what it needs is not built, or a tensor is missing,
        left over or of another shape than config.json says.
    """
    path = folder / CONFIG
    family, config = read_config(read_json(path), str(path))
    table, tensors = entries(parameter_shapes(config)), _tensors(folder)
    _check(folder, table, tensors, config)
    weights = Weights(family.model_type, config, table, tensors)
    for entry in table:
        weights.dtype_of(entry)
    return weights


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A config.json. Raises CalrecError where it is none."""
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CalrecError(f"{path} cannot be read: {error}") from error
    if not isinstance(described, dict):
        raise CalrecError(f"{path} is no JSON object")
    return described


def _tensors(folder: pathlib.Path) -> dict[str, TensorInfo]:
    """{plain name: tensor} of the decoder's tensors in all files of a checkpoint."""
    index = folder / _INDEX
    tensors: dict[str, TensorInfo] = {}
    for file in _files(index) if index.is_file() else [_ONE_FILE]:
        path = folder / file
        if not path.is_file():
            raise CalrecError(_no_weights(folder, path))
        for name, info in safetensors_io.read_header(path).items():
            plain = plain_name(name)
            if plain in tensors:
                raise CalrecError(f"{name} is in {tensors[plain].path} and again in {path}")
            if plain is not None:
                tensors[plain] = info
    return tensors


def _files(index: pathlib.Path) -> list[str]:
    """The files that an index names, which are beside it."""
    try:
        files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        unfit = [file for file in files if pathlib.Path(file).name != file]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CalrecError(f"{index} is damaged: {error!r}") from error
    if unfit or not files:
        raise CalrecError(f"{index} is damaged: it names no files beside it, but {unfit}")
    return files


def _no_weights(folder: pathlib.Path, path: pathlib.Path) -> str:
    pickled = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickled:
        return (
            f"{folder} has {pickled[0]} but not {path.name}: pickled weights run code when they "
            f"are loaded and are not read; save the model as safetensors"
        )
    return f"{folder} has no {path.name}"


def _check(
    folder: pathlib.Path,
    table: list[Entry],
    tensors: Mapping[str, TensorInfo],
    config: DecoderConfig,
) -> None:
    """Raises CalrecError where a tensor is missing, left over or of another shape."""
    wanted = {name: entry.hf_shape for entry in table for name in entry.tensors}
    there = {name: info.shape for name, info in tensors.items()}
    if config.tie_embeddings and "lm_head.weight" in there:
        _check_tied(folder, tensors)
        del there["lm_head.weight"]
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            raise CalrecError(
                f"{folder}: {name} is {_described(there.get(name))}, and by {CONFIG} it is to be "
                f"{_described(wanted.get(name))}"
            )


def _described(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _check_tied(folder: pathlib.Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises CalrecError where lm_head, beside tied embeddings, is no copy of the embedding."""
    head, embedding = tensors["lm_head.weight"], tensors.get("model.embed_tokens.weight")
    same = embedding is not None and (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
    if same:
        blocks = safetensors_io.row_blocks(head.shape[0], head.row_bytes)
        same = all(
            head.read_rows(*block).tobytes() == embedding.read_rows(*block).tobytes()
            for block in blocks
        )
    if not same:
        there = "absent" if embedding is None else _with_dtype(embedding)
        raise CalrecError(
            f"{folder}: lm_head.weight {_with_dtype(head)} is not model.embed_tokens.weight "
            f"{there}, and by {CONFIG} (tie_word_embeddings) it is to be"
        )


def _with_dtype(info: TensorInfo) -> str:
    return f"{info.dtype}{list(info.shape)}"


def import_weights(weights: Weights, directory: pathlib.Path) -> None:
    """Writes `weights` as checkpoint 0 of a stage.

    Args:
      directory: the stage's checkpoints.
    """
    tree: dict[str, Any] = {}
    for entry in weights.table:
        *above, last = entry.name.split("/")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = _streamed(weights, entry)
    streamed.write_params(directory, tree)


def _streamed(weights: Weights, entry: Entry) -> streamed.Streamed:
    dtype, axis = weights.dtype_of(entry), entry.split_axis
    first = next(entry.blocks(dtype.itemsize))[1]
    chunk = [*entry.shape]
    chunk[axis] = first.stop - first.start
    before = [slice(None)] * axis

    def pieces() -> Iterator[tuple[streamed.Index, np.ndarray]]:
        for layer, name in enumerate(entry.tensors):
            for rows, indices in entry.blocks(dtype.itemsize):
                part = weights.tensors[name].read_rows(rows.start, rows.stop)
                where = (*before, indices)
                yield ((layer, *where) if entry.stacked else where), entry.from_hf(part)

    if entry.stacked:
        shape, chunk = (len(entry.tensors), *entry.shape), [1, *chunk]
    else:
        shape = entry.shape
    return streamed.Streamed(shape, dtype, tuple(chunk), pieces)


Read = Callable[[str, streamed.Index], np.ndarray]
"""(name of a parameter, index) -> the part at that index."""


def export_weights(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    read_part: Read,
    max_file_bytes: int,
) -> None:
    """Writes parameters as safetensors, with an index where they are several files.

    Args:
      shapes, dtypes: of the parameters, by name; the dtypes are those to be written.
      read_part: gives their content.
      max_file_bytes: of one file; a larger tensor is a file of its own.

    Raises:
      CalrecError: Hugging Face's files have no such parameter, or a number is too large for its
        dtype.
    """
    tensors = [
        tensor
        for entry in entries(shapes)
        for tensor in _tensors_to_write(entry, np.dtype(dtypes[entry.name]), read_part)
    ]
    files = _split_into_files(tensors, max_file_bytes)
    names = [_ONE_FILE]
    if len(files) > 1:
        names = [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
        weight_map = {t.name: name for name, file in zip(names, files, strict=True) for t in file}
        index = {
            "metadata": {"total_size": sum(t.num_bytes for t in tensors)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(folder / _INDEX, index)
    for name, file in zip(names, files, strict=True):
        safetensors_io.write(folder / name, file)


def _tensors_to_write(entry: Entry, dtype: np.dtype, read_part: Read) -> Iterator[TensorToWrite]:
    before = [slice(None)] * entry.split_axis

    def pieces(layer: int) -> Iterator[np.ndarray]:
        for _, indices in entry.blocks(dtype.itemsize):
            where = (*before, indices)
            part = read_part(entry.name, (layer, *where) if entry.stacked else where)
            yield _cast(entry.tensors[layer], entry.to_hf(part), dtype)

    for layer, name in enumerate(entry.tensors):
        yield TensorToWrite(name, dtype, entry.hf_shape, pieces(layer))


def _cast(name: str, part: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`part`, rounded. Raises CalrecError where a number is too large for `dtype`."""
    if part.dtype == dtype:
        return part
    with np.errstate(over="ignore"):
        cast = part.astype(dtype)
    if (np.isfinite(part) & ~np.isfinite(cast)).any():
        raise CalrecError(
            f"{name} holds numbers that {dtype} has no place for: write it in bfloat16"
        )
    return cast


def _split_into_files(
    tensors: list[TensorToWrite], max_file_bytes: int
) -> list[list[TensorToWrite]]:
    """The tensors of each file, layers in their order, each file as full as it may be."""
    files: list[list[TensorToWrite]] = []
    left = 0
    for tensor in sorted(tensors, key=lambda tensor: _natural_order(tensor.name)):
        if not files or tensor.num_bytes > left:
            files.append([])
            left = max_file_bytes
        files[-1].append(tensor)
        left -= tensor.num_bytes
    return files


def _natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts layer 10 after layer 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))


def carry(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the small files beside weights, above all the tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted({file for pattern in _CARRIED for file in source.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def num_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The count of all numbers in parameters of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
