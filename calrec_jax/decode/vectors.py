"""Vectors for dense retrieval: v_t of a whole catalogue, v_u of histories, and files of them."""

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
from calrec_jax.models.params import Params
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.text.prompts import TokenizedCatalogue

_BUCKET = 32  # tokens: few programs to compile, little padding


class Towers:
    """The vectors of items and histories that training compares; each text is read alone.

    Args:
      decoder, params: the model, in the layout that training uses.
      bos_id: the vocabulary's; BOS goes before each text as in training.
      mesh, mesh_config: where `params` lie; texts are split along the data axis.
      batch_size: texts that are read together.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: Params,
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
        self._item_vectors = jax.jit(functools.partial(towers.item_vectors, decoder))

    def items(self, tokens: TokenizedCatalogue) -> np.ndarray:
        """v_t of each item, in the catalogue's order. float32 [items, D]."""
        return self._vectors([tokens.item_at(place) for place in range(len(tokens.catalogue))])

    def users(self, tokens: TokenizedCatalogue, histories: Sequence[Sequence[str]]) -> np.ndarray:
        """v_u of each history of item ids, oldest first. float32 [histories, D].

        In training no token of the prompt attends to the target after it, so that the prompt alone
        gives the same vector.

        Raises:
          CalrecError: a history is empty or holds ids that are not in the catalogue.
        """
        return self._vectors([tokens.prompt(history) for history in histories])

    def _vectors(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Each text's mean over its tokens, float32 [texts, D].

        Equal texts are read once, so that they tie exactly.
        """
        index_of: dict[bytes, int] = {}
        indices = [index_of.setdefault(text.tobytes(), len(index_of)) for text in texts]
        distinct = [np.frombuffer(data, np.int32) for data in index_of]
        vectors = np.zeros((len(distinct), self._width), np.float32)
        by_length = np.argsort([len(text) for text in distinct], kind="stable")
        for start in range(0, len(distinct), self._rows):
            batch = by_length[start : start + self._rows]
            tokens_BxI, mask_BxI = self._pad([distinct[i] for i in batch])
            with partitioning.use_mesh(self._mesh, self._mesh_config):
                # One slot a row: K = 1.
                inputs = partitioning.to_global(
                    (tokens_BxI[:, None], mask_BxI[:, None]), self._mesh
                )
                vectors_BxD = jax.device_get(self._item_vectors(self._params, *inputs))
            vectors[batch] = vectors_BxD[: len(batch)]
        return vectors[indices]

    def _pad(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """BOS + text in each row, int32 [B, I], and float32 [B, I], 1 on the text's tokens."""
        width = -(-(1 + max(map(len, texts))) // _BUCKET) * _BUCKET
        tokens_BxI = np.zeros((self._rows, width), np.int32)
        mask_BxI = np.zeros((self._rows, width), np.float32)
        tokens_BxI[:, 0] = self._bos_id
        for row, text in enumerate(texts):
            tokens_BxI[row, 1 : 1 + len(text)] = text
            mask_BxI[row, 1 : 1 + len(text)] = 1
        return tokens_BxI, mask_BxI


def cached(
    folder: pathlib.Path,
    name: str,
    settings: Mapping[str, Any],
    compute: Callable[[], np.ndarray],
) -> np.ndarray:
    """The vectors saved in `folder`; they are computed and saved where they are not there yet.

    In a read-only folder, such as a served run's may be, they are computed and not saved.

    Args:
      folder: created where it is missing.
      name: the catalogue's. The file's name is this and a fingerprint of `settings`, so that
        vectors of other settings are in another file.
      settings: all that the vectors depend on: checkpoint, texts, vocabulary, lengths. As JSON.
      compute: returns the vectors, float32 [items, D].

    Raises:
      CalrecError: the file is damaged, or cannot be written.
    """
    settings_json = json.dumps(settings, sort_keys=True)
    fingerprint = hashlib.blake2b(settings_json.encode(), digest_size=16).hexdigest()
    path = folder / f"{name}-{fingerprint}.npz"
    if path.exists():
        return _load(path, settings_json)
    vectors = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.save_npz(path, vectors=vectors, settings=np.array(settings_json))
    except OSError as error:
        if not is_read_only(error):
            raise CalrecError(f"cannot keep the items' vectors as {path}: {error}") from error
    return vectors


def _load(path: pathlib.Path, settings_json: str) -> np.ndarray:
    try:
        with np.load(path) as saved:
            saved_settings, vectors = str(saved["settings"]), saved["vectors"]
        if saved_settings != settings_json:
            raise ValueError("its vectors are of other settings")
    except files.DAMAGED_NPZ as error:
        raise CalrecError(f"{path} holds no vectors ({error}): remove it") from error
    return vectors
