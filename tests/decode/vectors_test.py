"""Vectors of items and users are those that the training step compares."""

from __future__ import annotations

import errno

import jax
import numpy as np
import pytest
import tiny
from decode.tries import tokenized

from calrec_jax import losses
from calrec_jax.decode import vectors
from calrec_jax.decode.vectors import Towers
from calrec_jax.errors import CalrecError
from calrec_jax.losses import LossConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state
from calrec_jax.training import step

SLOTS = {
    example: row * 3 + k for row, slots in enumerate(tiny.ROWS) for k, example in enumerate(slots)
}
HISTORIES = [example["history"] for example in tiny.EXAMPLES]
TARGETS = [example["target"] for example in tiny.EXAMPLES]
TOKENS = tokenized([*HISTORIES, *TARGETS])
IDS = TOKENS.catalogue.item_ids


def towers(mesh_config: MeshConfig, batch_size: int) -> Towers:
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.model])
    decoder = Decoder(tiny.CONFIG)
    shapes = train_state.param_shapes(decoder, mesh, mesh_config)
    params = jax.tree.map(
        lambda leaf, shape: jax.device_put(leaf, shape.sharding), tiny.params(), shapes
    )
    return Towers(
        decoder,
        params,
        bos_id=tiny.BOS,
        mesh=mesh,
        mesh_config=mesh_config,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def alone() -> Towers:
    return towers(MeshConfig(1, 1), 4)


@pytest.fixture(scope="module")
def compared() -> tuple[np.ndarray, np.ndarray]:
    """(v_u, v_t) of EXAMPLES, as the losses of the packed batch get them."""
    seen = []

    def record(a, b, *args):
        seen.append((np.asarray(a), np.asarray(b)))
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "info_nce", record)
        step.loss_sums(
            Decoder(tiny.CONFIG), tiny.params(), tiny.packed(), LossConfig(), tiny.MAX_LOSS_TOKENS
        )
    (_, v_t), (v_u, _) = seen
    slots = [SLOTS[example] for example in range(len(tiny.EXAMPLES))]
    return v_u[slots], v_t[slots]


@pytest.mark.parametrize("mesh_config", [MeshConfig(1, 1), MeshConfig(4, 2)])
def test_vectors_are_those_of_the_training_step(mesh_config, compared):
    ours, (v_u, v_t) = towers(mesh_config, 3), compared
    items = ours.items(TOKENS)
    users = ours.users(TOKENS, [[IDS[i]] for i in range(len(HISTORIES))])
    assert items.dtype == users.dtype == np.float32
    np.testing.assert_allclose(items[len(HISTORIES) :], v_t, rtol=0, atol=1e-5)
    np.testing.assert_allclose(users, v_u, rtol=0, atol=1e-5)
    assert np.abs(v_t[0] - v_t[2]).max() > 0.1  # vectors of another example would be seen


def test_a_text_has_the_same_vector_whatever_is_read_with_it(alone):
    items = alone.items(TOKENS)
    for place in (0, 4, 9):
        text = TOKENS.item_at(place).tolist()
        np.testing.assert_allclose(alone.items(tokenized([text]))[0], items[place], atol=1e-6)


def test_texts_of_several_widths_come_back_in_their_order(alone):
    items = [[3] * 40, [4, 5], [3] * 33, [6], [7] * 38, [8, 9, 10]]
    got = alone.items(tokenized(items, max_tokens=50))
    for row, text in zip(got, items, strict=True):
        np.testing.assert_allclose(row, alone.items(tokenized([text], 50))[0], atol=1e-6)


def test_equal_texts_tie_exactly(alone):
    items = alone.items(tokenized([[3, 4], [5], [6, 7, 8], [9], [10], [3, 4]]))
    np.testing.assert_array_equal(items[0], items[5])


def test_an_item_without_text_has_a_vector_of_zeros(alone):
    items = alone.items(tokenized([[], [3]]))
    assert not items[0].any() and items[1].any()


def test_a_history_reads_its_items_in_order(alone):
    pair = alone.users(tokenized([[3, 4], [5]]), [["i000", "i001"], ["i001", "i000"]])
    joined = alone.items(tokenized([[3, 4, 5], [5, 3, 4]]))
    np.testing.assert_allclose(pair, joined, atol=1e-6)
    with pytest.raises(CalrecError, match="empty history"):
        alone.users(TOKENS, [[]])


SETTINGS = {"vocabulary": "bytes", "lengths": {"inputs": 9, "targets": 4}, "kinds": ("a", "b")}
MADE = np.arange(6, dtype=np.float32).reshape(3, 2)


def computed_never() -> np.ndarray:
    raise AssertionError("the file was there")


def test_vectors_are_computed_once(tmp_path):
    folder = tmp_path / "stage2" / "vectors"
    assert vectors.cached(folder, "games", SETTINGS, lambda: MADE) is MADE
    again = vectors.cached(folder, "games", SETTINGS, computed_never)
    assert again.dtype == np.float32 and again.tolist() == MADE.tolist()
    (path,) = folder.iterdir()
    assert path.name.startswith("games-") and path.suffix == ".npz"


@pytest.mark.parametrize(
    "other", [SETTINGS | {"vocabulary": "words"}, SETTINGS | {"lengths": {}}, {}]
)
def test_vectors_of_other_settings_stand_beside_each_other(tmp_path, other):
    vectors.cached(tmp_path, "games", SETTINGS, lambda: MADE)
    assert vectors.cached(tmp_path, "games", other, lambda: -MADE).tolist() == (-MADE).tolist()
    assert len(list(tmp_path.iterdir())) == 2
    again = vectors.cached(tmp_path, "games", SETTINGS, computed_never)
    assert again.tolist() == MADE.tolist()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def torn(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(CalrecError, match="cannot keep .*games-.*No space"):
        vectors.cached(tmp_path, "games", SETTINGS, lambda: MADE)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "vectors").write_text("")
    with pytest.raises(CalrecError, match="cannot keep"):
        vectors.cached(tmp_path / "vectors", "games", SETTINGS, lambda: MADE)


def saved(path, **arrays) -> bytes:
    np.savez(path, **arrays)
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other arrays", "other settings"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    vectors.cached(tmp_path, "games", SETTINGS, lambda: MADE)
    (path,) = tmp_path.iterdir()
    content = {
        "empty": b"",
        "half": path.read_bytes()[:-40],
        "text": b"text",
        "other arrays": saved(tmp_path / "x.npz", vectors=MADE),
        "other settings": saved(tmp_path / "x.npz", vectors=MADE, settings=np.array("{}")),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(CalrecError, match="holds no vectors .*: remove it"):
        vectors.cached(tmp_path, "games", SETTINGS, computed_never)
    assert path.read_bytes() == content


def test_where_nothing_may_be_written_vectors_are_computed_each_time(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(np, "savez", refused)
    for made in (MADE, -MADE):
        found = vectors.cached(tmp_path, "games", {}, lambda made=made: made)
        assert found.tolist() == made.tolist()
    assert not list(tmp_path.iterdir())
