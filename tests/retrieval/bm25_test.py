"""BM25 against bm25s itself and against the formula, written out."""

from __future__ import annotations

import collections
import errno
import gzip
import itertools
import json
import math
import pathlib
import random
import re
import subprocess
import sys
from typing import Any, BinaryIO

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.retrieval import bm25
from calrec_jax.retrieval.bm25 import BM25Config, BM25Index
from calrec_jax.retrieval.round_robin import ranked
from calrec_jax.retrieval.words import words

TEXTS = [
    "Title: cast iron pan Brand: Lodge",
    "",
    "Title: iron iron iron nails Brand: Acme",
    "Title: frying pan, 12 inch Brand: Lodge Price: $12.00",
    "Title: tape",
]
QUERIES = ["cast iron pan", "Title: IRON Brand: Lodge", "pan pan", "$12", "nothing known", ""]


def lucene(texts: list[str], query: str, k1: float, b: float) -> list[float]:
    """The formula, word for word."""
    documents = [words(text) for text in texts]
    average = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(query):
            df = sum(word in other for other in documents)
            tf = document.count(word)
            if tf == 0:
                continue
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (1.2, 1.0)])
def test_scores_are_the_formulas(k1: float, b: float) -> None:
    expected = [lucene(TEXTS, query, k1, b) for query in QUERIES]
    scores = BM25Index(TEXTS, BM25Config(k1, b)).scores(QUERIES)
    np.testing.assert_allclose(scores, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"k1": -0.1}, "it must be finite and not negative"),
        ({"k1": float("inf")}, "it must be finite and not negative"),
        ({"b": -0.1}, r"give one in \[0, 1\]"),
        ({"b": 1.1}, r"give one in \[0, 1\]"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(change: dict[str, float], reason: str) -> None:
    ((name, value),) = change.items()
    with pytest.raises(CalrecError, match=f"^BM25Config.{name} is {value}: {reason}$"):
        BM25Config(**change)


def test_parameters_of_other_types_are_left_to_the_check_of_types() -> None:
    assert BM25Config(k1="1.2").k1 == "1.2"


word = st.sampled_from(["iron", "pan", "nail", "12", "lodge", "été", "a"])
text = st.lists(word, max_size=8).map(" ".join)


@given(st.lists(text, min_size=1, max_size=8).filter(any), st.lists(text, max_size=5))
def test_random_scores_are_the_formulas(texts: list[str], queries: list[str]) -> None:
    expected = np.array([lucene(texts, query, 1.5, 0.75) for query in queries])
    scores = BM25Index(texts).scores(queries)
    assert scores.shape == (len(queries), len(texts))
    np.testing.assert_allclose(scores, expected.reshape(scores.shape), rtol=1e-13, atol=0)


def test_scores_are_those_of_bm25s() -> None:
    reference = bm25s.BM25(k1=1.5, b=0.75, method="lucene", dtype="float64")
    reference.index([words(text) for text in TEXTS], show_progress=False)
    scores = BM25Index(TEXTS).scores(QUERIES[:4])
    for query, row in zip(QUERIES[:4], scores, strict=True):
        np.testing.assert_allclose(row, reference.get_scores(words(query)), rtol=1e-14, atol=0)


def test_a_repeated_word_counts_each_time() -> None:
    once, twice = BM25Index(TEXTS).scores(["iron", "iron iron"])
    np.testing.assert_array_equal(twice, 2 * once)


def test_scores_are_float64() -> None:
    scores = BM25Index(TEXTS).scores(QUERIES)
    assert scores.dtype == np.float64
    assert scores.shape == (len(QUERIES), len(TEXTS))


def test_no_known_word_gives_zeros() -> None:
    assert not BM25Index(TEXTS).scores(["", "nothing known", "?!"]).any()


def test_no_query_gives_no_row() -> None:
    index = BM25Index(TEXTS)
    assert index.scores([]).shape == (0, len(TEXTS))
    assert [found.shape for found in index.top_k([], 2)] == [(0, 2), (0, 2)]


def test_a_query_scores_the_same_in_any_batch() -> None:
    index = BM25Index(TEXTS)
    together = index.scores(QUERIES)
    for query, row in zip(QUERIES, together, strict=True):
        np.testing.assert_array_equal(index.scores([query])[0], row)


@pytest.mark.parametrize("held", [1, 2 * len(TEXTS), 2**20])
def test_blocks_of_any_size_give_the_same(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index = BM25Index(TEXTS)
    expected = [index.scores([query])[0] for query in QUERIES]
    best = [index.top_k([query], 3) for query in QUERIES]
    monkeypatch.setattr(bm25, "_BLOCK_SCORES", held)
    np.testing.assert_array_equal(index.scores(QUERIES), expected)
    scores, places = index.top_k(QUERIES, 3)
    np.testing.assert_array_equal(scores, np.concatenate([scores for scores, _ in best]))
    np.testing.assert_array_equal(places, np.concatenate([places for _, places in best]))


def test_equal_texts_tie_exactly() -> None:
    scores = BM25Index([*TEXTS, *TEXTS]).scores(QUERIES)
    np.testing.assert_array_equal(scores[:, : len(TEXTS)], scores[:, len(TEXTS) :])


def test_the_index_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Known defect elsewhere: the index is built again for each user.
    built = []
    build = bm25s.BM25.index

    def counting(self: bm25s.BM25, *args: Any, **kwargs: bool) -> None:
        built.append(self)
        return build(self, *args, **kwargs)

    monkeypatch.setattr(bm25s.BM25, "index", counting)
    index = BM25Index(TEXTS)
    for query in QUERIES:
        index.scores([query])
    assert len(built) == 1


def test_scores_do_not_depend_on_the_hash_seed() -> None:
    # bm25s numbers words in the order of a set, which differs between processes; sums of floats
    # depend on their order.
    texts = [" ".join(f"w{i * j % 97}" for j in range(1, 30)) for i in range(1, 40)]
    code = (
        "from calrec_jax.retrieval.bm25 import BM25Index\n"
        f"print(BM25Index({texts!r}).scores({texts!r}).tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {BM25Index(texts).scores(texts).tobytes().hex()}


def test_text_without_spaces_is_found() -> None:
    texts = ["Title: 2023新款韩版宽松显瘦连衣裙女夏季", "Title: 不锈钢保温杯大容量便携男女学生"]
    dress, cup = BM25Index(texts).scores(["Title: 不锈钢保温杯大容量便携"])[0]
    assert cup > dress


# Letters with their marks, of which titles are made.
LETTERS = {
    "Chinese": "不 锈 钢 保 温 杯 大 容 量 便 携 男 女 学 生 新 款 韩 版 宽 松 显 瘦 连 衣 裙 夏 2",
    "Japanese": "水 筒 軽 量 保 冷 お し ゃ れ か わ い い ス テ ン レ ー デ ィ ボ ト ル ポ 々 5",
    "Korean": "스 테 인 리 보 온 병 대 용 량 휴 남 녀 학 생 신 상 여 름 원 피 방 수 무 선 청 소 값",
    "Thai": "ก ระ ติ น้ำ เ ก็ บ ค วา ม ร้ อ น พ กพ า ผู้ ห ญิ ง นั ก เ รี ย น เ ด ร ส ฤ ดู",
    "Khmer": "កែ វ ទឹ ក ដែ អ៊ី ណុ រ ក្សា កំ ដៅ ច ល័ ត សិ ស្ស រ៉ូ ប ដូ វ ស្បែ ជើ ង កា បូ ទូ រ ស័ ព្ទ",
    "Lao": "ຈ ອ ກ ນ້ຳ ສະ ແ ຕ ນ ເ ລ ດ ເ ກັ ບ ຄ ວາ ມ ຮ້ ພົ ກ ພາ ນັ ຮຽ ຊຸ ດ ລະ ດູ ເກີ ໂ ທ",
    "Burmese": "ရေ ဘူး သံ မ ဏိ အ ပူ ထိ န်း သ ယ် ဆော င် ကျော င်း သား ဂါ ဝ န် နွေ ရာ သီ စို ခံ ဖိ နပ်",
}


@pytest.mark.parametrize("script", LETTERS)
def test_of_240_items_each_is_found_with_a_character_missing(script: str) -> None:
    rng, letters = random.Random(0), LETTERS[script].split()
    titles = ["".join(rng.choices(letters, k=14)) for _ in range(240)]
    queries = []
    for title in titles:
        missing = rng.randrange(len(title))
        queries.append(f"Title: {title[:missing]}{title[missing + 1 :]}")
    _, places = BM25Index([f"Title: {title}" for title in titles]).top_k(queries, 1)
    assert np.count_nonzero(places[:, 0] == np.arange(240)) == 240


@pytest.mark.parametrize("texts", [[], ["", " ? "]])
def test_a_catalogue_without_words_is_refused(texts: list[str]) -> None:
    with pytest.raises(CalrecError, match="no text to index"):
        BM25Index(texts)


def test_words_of_half_the_items_are_added_in_any_order_of_the_others() -> None:
    # Some words are in all items, some in more than half, some in few; "a" more than once.
    texts = [
        f"title a{' a' * (i % 3)} {'half' if i % 3 else 'third'} w{i % 7} brand b{i % 11}"
        for i in range(60)
    ]
    queries = [
        "title a half w3 brand b5 a",
        "b5 brand w3 half a title a",
        "w3 b5",
        "brand title",
        "title title w3 w3 a",
        "third w6 none",
    ]
    expected = [lucene(texts, query, 1.5, 0.75) for query in queries]
    index = BM25Index(texts)
    together = index.scores(queries)
    np.testing.assert_allclose(together, expected, rtol=1e-13, atol=0)
    for query, row in zip(queries, together, strict=True):
        np.testing.assert_array_equal(index.scores([query])[0], row)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_best_are_those_of_all_scores(k: int) -> None:
    index = BM25Index([*TEXTS, *TEXTS])
    rows = index.scores(QUERIES)
    scores, places = index.top_k(QUERIES, k)
    assert scores.shape == places.shape == (len(QUERIES), min(k, 10))
    for row, best, at in zip(rows, scores, places, strict=True):
        assert at.tolist() == ranked(row, k).tolist()
        assert best.tolist() == row[at].tolist()


def test_a_saved_index_gives_the_same_scores(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, "été \udcff naïve"]
    index = BM25Index(texts, BM25Config(0.9, 0.4))
    index.save(tmp_path / "index.npz")
    monkeypatch.setattr(bm25s.BM25, "index", None)  # nothing is built
    loaded = BM25Index.load(tmp_path / "index.npz", texts, BM25Config(0.9, 0.4))
    queries = [*QUERIES, "été"]
    np.testing.assert_array_equal(loaded.scores(queries), index.scores(queries))
    assert [path.name for path in tmp_path.iterdir()] == ["index.npz"]


@pytest.mark.parametrize(
    "other",
    [
        (TEXTS[:-1], BM25Config()),
        ([*TEXTS[:-2], TEXTS[-1], TEXTS[-2]], BM25Config()),
        ([*TEXTS[:-1], TEXTS[-1] + " "], BM25Config()),
        (TEXTS, BM25Config(k1=1.4)),
        (TEXTS, BM25Config(b=0.7)),
    ],
)
def test_a_saved_index_of_something_else_is_refused(
    tmp_path: pathlib.Path, other: tuple[BM25Config | list[str], ...]
) -> None:
    BM25Index(TEXTS).save(tmp_path / "index.npz")
    with pytest.raises(CalrecError, match="of other texts, k1 or b"):
        BM25Index.load(tmp_path / "index.npz", *other)


def test_a_missing_index_is_reported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CalrecError, match="there is no index of BM25 at .*index.npz"):
        BM25Index.load(tmp_path / "index.npz", TEXTS)


def test_a_damaged_index_is_refused_or_does_no_harm(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "index.npz"
    index = BM25Index(TEXTS)
    index.save(path)
    whole, scores = path.read_bytes(), index.scores(QUERIES)
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:  # some bytes do not matter, such as those of a time
            np.testing.assert_array_equal(BM25Index.load(path, TEXTS).scores(QUERIES), scores)
        except CalrecError:
            refused += 1
    assert refused > len(whole) // 6
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(CalrecError, match="index.npz is no index of BM25.*remove it"):
            BM25Index.load(path, TEXTS)


def test_a_save_that_fails_leaves_the_old_index(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, path = BM25Index(TEXTS), tmp_path / "index.npz"
    index.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(OSError):
        index.save(path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.npz"]


def torn(file: BinaryIO, **arrays: np.ndarray) -> None:
    file.write(b"half")
    raise OSError("no space")


def test_a_cached_index_is_built_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "not" / "yet", BM25Index(TEXTS).scores(QUERIES)
    built = BM25Index.cached(folder, "items", TEXTS)
    (path,) = folder.iterdir()
    assert re.fullmatch(r"items-[0-9a-f]{32}\.npz", path.name)
    monkeypatch.setattr(bm25s.BM25, "index", None)  # nothing is built
    loaded = BM25Index.cached(str(folder), "items", TEXTS)
    for index in (built, loaded):
        np.testing.assert_array_equal(index.scores(QUERIES), expected)


def test_another_index_is_another_file(tmp_path: pathlib.Path) -> None:
    other = BM25Config(k1=0.9, b=0.4)
    for texts, config in ((TEXTS, BM25Config()), (TEXTS[:-1], BM25Config()), (TEXTS, other)):
        index = BM25Index.cached(tmp_path, "items", texts, config)
        np.testing.assert_array_equal(
            index.scores(QUERIES), BM25Index(texts, config).scores(QUERIES)
        )
    assert len({*tmp_path.iterdir()}) == 3


def test_an_index_of_other_words_is_not_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it was when text without spaces was one word.
    with monkeypatch.context() as patched:
        patched.setattr(bm25, "_FORMAT", "1")
        patched.setattr(bm25, "words", lambda text: re.findall(r"\w+", text.lower()))
        old = BM25Index.cached(tmp_path, "items", ["保温杯大"])
    assert not old.scores(["保温杯"]).any()
    assert BM25Index.cached(tmp_path, "items", ["保温杯大"]).scores(["保温杯"]).any()


def test_a_damaged_cached_index_is_named(tmp_path: pathlib.Path) -> None:
    BM25Index.cached(tmp_path, "items", TEXTS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CalrecError, match=f"{path} is no index of BM25.*remove it"):
        BM25Index.cached(tmp_path, "items", TEXTS)
    path.unlink()
    BM25Index.cached(tmp_path, "items", TEXTS)
    assert [*tmp_path.iterdir()] == [path]


def test_where_nothing_may_be_written_an_index_is_built_each_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: BinaryIO, **kwargs: np.ndarray) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(np, "savez", refused)
    index = BM25Index.cached(tmp_path, "items", TEXTS)
    np.testing.assert_array_equal(index.scores(TEXTS), BM25Index(TEXTS).scores(TEXTS))
    assert [*tmp_path.iterdir()] == []


def test_an_index_that_cannot_be_cached_is_reported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CalrecError, match="cannot save the index of BM25 as .*file/items-"):
        BM25Index.cached(file, "items", TEXTS)
    with pytest.raises(CalrecError, match="mount the bucket"):
        BM25Index.cached("gs://bucket/indexes", "items", TEXTS)
    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(CalrecError, match="cannot save .*no space"):
        BM25Index.cached(tmp_path, "items", TEXTS)
    assert [*tmp_path.iterdir()] == [file]


def test_the_last_title_as_query_on_real_data(shared_data: pathlib.Path) -> None:
    """The figures were measured apart from this project's code: .0942 and .0480 [.0445, .0512]."""
    folder = shared_data / "amazon2018" / "Industrial_and_Scientific"
    titles = {item["item_id"]: item["title"] or "" for item in records(folder / "items.jsonl.gz")}
    place = {item_id: i for i, item_id in enumerate(sorted(titles))}
    events = collections.defaultdict(list)
    for event in records(folder / "interactions.jsonl.gz"):
        events[event["user_id"]].append((event["order"], event["item_id"]))
    users = [
        [item_id for item_id, _ in itertools.groupby(item_id for _, item_id in sorted(user))]
        for user in events.values()
    ]
    pairs = [(user[-2], user[-1]) for user in users if len(user) >= 3]
    assert (len(pairs), len(titles)) == (8441, 4385)

    index, bounds = BM25Index([titles[item_id] for item_id in place]), []
    for start in range(0, len(pairs), 512):
        block = pairs[start : start + 512]
        rows = index.scores([titles[last] for last, _ in block])
        targets = [place[target] for _, target in block]
        bounds += [metrics.rank_bounds(row, t) for row, t in zip(rows, targets, strict=True)]
    summary = metrics.summarise({"": np.array(bounds).T})[""]
    assert summary["recall@10"]["value"] == pytest.approx(0.0942, abs=5e-5)
    assert summary["ndcg@10"]["value"] == pytest.approx(0.0480, abs=5e-5)
    assert summary["ndcg@10"]["low"] == pytest.approx(0.0445, abs=3e-4)
    assert summary["ndcg@10"]["high"] == pytest.approx(0.0512, abs=3e-4)


def records(path: pathlib.Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]
