"""The towers as a retriever: v_t of a whole catalogue and v_u of histories, and their cache."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from calrec_jax import files
from calrec_jax.errors import CalrecError, is_read_only
from calrec_jax.models import towers
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.text.prompts import TokenizedCatalogue

_BUCKET = 32  # tokens: few programs to compile, little padding


class Towers:
    """The vectors that training compares, of texts that are read alone.

    Args:
      decoder, params: the model, as training has it.
      bos_id: of the vocabulary; BOS goes before each text as in training.
      mesh, mesh_config: where `params` lie; texts are split along the data axis.
      batch_size: texts that are read together.
    """

    def __init__(
        self,
        decoder: Decoder,
        params,
        *,
        bos_id: int,
        mesh: Mesh,
        mesh_config: MeshConfig,
        batch_size: int = 64,
    ):
        self._params, self._bos_id = params, bos_id
        self._mesh, self._mesh_config = mesh, mesh_config
        data = mesh.shape["data"]
        self._rows = -(-batch_size // data) * data
        self._width = decoder.config.d_model
        self._read = jax.jit(functools.partial(towers.item_vectors, decoder))

    def items(self, tokens: TokenizedCatalogue) -> np.ndarray:
        """v_t of each item, in the catalogue's order. float32 [items, D]."""
        return self._vectors([tokens.item_at(place) for place in range(len(tokens.catalogue))])

    def users(self, tokens: TokenizedCatalogue, histories: Sequence[Sequence[str]]) -> np.ndarray:
        """v_u of each history of item ids, oldest first. float32 [histories, D].

        No token of a prompt attends to the target behind it, so that the prompt is read alone.

        Raises:
          CalrecError: a history is empty or holds ids that are not in the catalogue.
        """
        return self._vectors([tokens.prompt(history) for history in histories])

    def _vectors(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Each text's mean over its tokens. Equal texts are read once, so that they tie exactly."""
        distinct: dict[bytes, int] = {}
        places = [distinct.setdefault(text.tobytes(), len(distinct)) for text in texts]
        once = [np.frombuffer(data, np.int32) for data in distinct]
        vectors = np.zeros((len(once), self._width), np.float32)
        order = np.argsort([len(text) for text in once], kind="stable")
        for start in range(0, len(once), self._rows):
            some = order[start : start + self._rows]
            tokens, mask = self._pad([once[i] for i in some])
            with partitioning.use_mesh(self._mesh, self._mesh_config):
                inputs = partitioning.to_global((tokens[:, None], mask[:, None]), self._mesh)
                vectors[some] = jax.device_get(self._read(self._params, *inputs))[: len(some)]
        return vectors[places]

    def _pad(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of BOS + text, and float32 masks of the text, as in `batch.BatchSpec`."""
        width = -(-(1 + max(map(len, texts))) // _BUCKET) * _BUCKET
        tokens = np.zeros((self._rows, width), np.int32)
        mask = np.zeros((self._rows, width), np.float32)
        tokens[:, 0] = self._bos_id
        for row, text in enumerate(texts):
            tokens[row, 1 : 1 + len(text)] = text
            mask[row, 1 : 1 + len(text)] = 1
        return tokens, mask


def cached(
    folder: pathlib.Path,
    name: str,
    settings: Mapping[str, Any],
    compute: Callable[[], np.ndarray],
) -> np.ndarray:
    """The vectors that are kept in `folder`, computed and written where they are not yet.

    Where nothing may be written, as a served run's folder may be, they are computed alone.

    Args:
      folder: made where it is missing.
      name: of the catalogue, with which the file's name begins: the rest of it is a fingerprint of
        `settings`, so that vectors of others are another file.
      settings: all that the vectors depend on: checkpoint, texts, vocabulary, lengths. As JSON.
      compute: gives float32 [items, D].

    Raises:
      CalrecError: the file is damaged, or cannot be written.
    """
    wanted = json.dumps(settings, sort_keys=True)
    fingerprint = hashlib.blake2b(wanted.encode(), digest_size=16).hexdigest()
    path = folder / f"{name}-{fingerprint}.npz"
    if path.exists():
        return _load(path, wanted)
    vectors = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.save_npz(path, vectors=vectors, settings=np.array(wanted))
    except OSError as error:
        if not is_read_only(error):
            raise CalrecError(f"cannot keep the items' vectors as {path}: {error}") from error
    return vectors


def _load(path: pathlib.Path, settings: str) -> np.ndarray:
    try:
        with np.load(path) as saved:
            there, vectors = str(saved["settings"]), saved["vectors"]
        if there != settings:
            raise ValueError("those in it are of other settings")
    except files.DAMAGED_NPZ as error:
        raise CalrecError(f"{path} holds no vectors ({error}): remove it") from error
    return vectors
