"""Vocabularies: bytes, SentencePiece, and Hugging Face's tokenizer.json.

Nothing here imports TensorFlow or SeqIO; `seqio_vocabularies` turns them into SeqIO's vocabularies.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import importlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from calrec_jax.errors import CalrecError
from calrec_jax.text.special_tokens import read_object, special_tokens

_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}  # pieces of a model that falls back to bytes


@runtime_checkable
class VocabularyLike(Protocol):
    """What is needed of a vocabulary: those of `vocabularies` have it, and any of SeqIO's."""

    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> Sequence[int]:
        """Token ids, without BOS or EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first EOS."""


class Vocabulary(abc.ABC):
    """Maps text to token ids and back.

    The names are `seqio.Vocabulary`'s, which can be used instead. Vocabularies that give the same
    ids are equal.

    Attributes:
      vocab_size: every id is below it.
      pad_id: the id that fills up a row. Padding is recognised by segment ids and never by this id,
        so it may be the same as `eos_id`.
      eos_id: the id that ends a text.
      unk_id: the id of text that has no token; None where all text has one.
      bos_id: the id that starts a row; None or -1 where there is none (see the function `bos_id`).
      arguments: the arguments that make the same vocabulary again.
      fingerprint: see the function `fingerprint`.
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int | None
    bos_id: int | None
    arguments: Mapping[str, Any]
    fingerprint: str

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without BOS and EOS.

        Text stays text: the name of a special token in it is encoded letter by letter.
        """

    def encode_template(self, text: str) -> list[int]:
        """The ids of a template's sentence, in which names of special tokens stand for the tokens.

        Those around the turns of a chat are an example. Only a tokenizer.json has such tokens.
        """
        return self.encode(text)

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS, without padding, BOS and other special tokens."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class ByteVocabulary(Vocabulary):
    """UTF-8 bytes as in ByT5: pad 0, EOS 1, unknown 2, then the 256 bytes."""

    pad_id, eos_id, unk_id, bos_id = 0, 1, 2, None
    vocab_size = 3 + 256
    arguments: Mapping[str, Any] = {}

    @property
    def fingerprint(self) -> str:
        return f"{type(self).__name__}:{self.vocab_size}"

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as the base class says. Bytes that are not UTF-8 are left out."""
        values = [i - 3 for i in _before(self.eos_id, ids) if 3 <= i < self.vocab_size]
        return bytes(values).decode(errors="ignore")


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model's pieces. The pad id is 0 whatever the model says, as in SeqIO.

    Args:
      path: the model's file.

    Raises:
      CalrecError: there is no such file, it is no SentencePiece model or one without EOS, or the
        library sentencepiece is missing.
    """

    pad_id = 0

    def __init__(self, path: str):
        library = optional_library("sentencepiece")
        if not pathlib.Path(path).is_file():
            raise CalrecError(
                f"no SentencePiece model at {path}: train one with `calrec vocab --out={path} "
                f"...`, or set VOCABULARY"
            )
        try:
            self._model = library.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise CalrecError(f"{path} is no SentencePiece model: {error}") from error
        self.path = str(path)
        self.arguments = {"path": os.path.abspath(path)}
        self.vocab_size = self._model.GetPieceSize()
        self.eos_id, self.unk_id = self._model.eos_id(), self._model.unk_id()
        self.bos_id = self._model.bos_id()
        if self.eos_id < 0:
            raise CalrecError(f"{path} has no EOS piece, and no item would end: train it with one")
        digest = _digest(self._model.serialized_model_proto())
        self.fingerprint = f"{type(self).__name__}:{digest}"

    def encode(self, text: str) -> list[int]:
        return self._model.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as the base class says. Unknown ids and pieces become " ⁇ "."""
        pieces = [i if i < self.vocab_size else self.unk_id for i in _before(self.eos_id, ids)]
        return self._model.DecodeIds(pieces)


class HuggingFaceVocabulary(Vocabulary):
    """A tokenizer.json, with the ids that the library tokenizers gives.

    Names of special tokens in a text are encoded letter by letter. Special are BOS, EOS, padding,
    the tokens that the file marks as special, and added tokens that absorb white space. Names of
    other added tokens become these tokens. Truncation and padding that the file configures are
    ignored: whole texts are encoded.

    BOS, EOS and padding are taken from the arguments, otherwise from a tokenizer_config.json beside
    the file, otherwise from the model's family. EOS is also the padding if none is named.

    Args:
      path: the tokenizer.json.
      family: a key of `special_tokens.FAMILIES`; None: the family whose special tokens the file
        has, if BOS or EOS is not named elsewhere.
      bos_token, eos_token, pad_token: the tokens; "" for none, None for not given here.
      num_embeddings: the number of the model's embeddings. Added tokens with ids beyond it are
        ignored and their names are ordinary text, for example Gemma 3's image token in models for
        text alone.

    Raises:
      CalrecError: there is no such file, it is no tokenizer.json, its special tokens cannot be
        determined or are not in it, or the library is missing.
    """

    def __init__(
        self,
        path: str,
        family: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        num_embeddings: int | None = None,
    ):
        library = optional_library("tokenizers")
        file = pathlib.Path(path)
        content = original = read_object(file)
        try:
            if num_embeddings is not None:
                content = _without_ids_from(num_embeddings, original)
            if content is original:
                self._tokenizer = library.Tokenizer.from_file(str(path))
            else:
                self._tokenizer = library.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library has no exception of its own
            raise CalrecError(f"{path} is no tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}

        named = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        self.arguments = {"path": os.path.abspath(path), "family": family} | named
        self.arguments["num_embeddings"] = num_embeddings
        tokens = special_tokens(file, family, named, ids, special)
        self.vocab_size = max(ids.values()) + 1
        self.eos_id = ids[tokens["eos_token"]]
        self.bos_id = ids.get(tokens["bos_token"])
        self.pad_id = ids.get(tokens["pad_token"], self.eos_id)
        self.unk_id = _unk_id(content["model"], ids)
        self._special = self._mark_special(tokens.values(), content["model"], ids)
        self._tokenizer.encode_special_tokens = True
        self.fingerprint = f"{type(self).__name__}:{self._content_digest(content)}"

    def _content_digest(self, content: dict) -> str:
        meaning = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
        special = [self.bos_id, self.eos_id, self.pad_id, self.unk_id]
        return _digest(json.dumps([meaning, special], sort_keys=True).encode())

    def _mark_special(
        self, named: Iterable[str], model: Mapping[str, object], ids: Mapping[str, int]
    ) -> dict[int, str]:
        """Marks special tokens as such. Returns {id: token} of those that text must not become.

        Args:
          named: BOS, EOS and padding; "" for none.
        """
        added = self._tokenizer.get_added_tokens_decoder().values()
        for token in added:
            if token.content in named or token.lstrip or token.rstrip:
                token.special = True
        special = [token for token in added if token.special]
        self._tokenizer.add_special_tokens(special)
        tokens = {*named, *(token.content for token in special)} - {""}
        if model.get("byte_fallback"):
            tokens |= ids.keys() & _BYTES
        if self.unk_id is not None:
            tokens.add(self._tokenizer.id_to_token(self.unk_id))
        return {ids[token]: token for token in tokens}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state
        self._tokenizer.encode_special_tokens = True  # the library leaves it out of a copy

    def encode(self, text: str) -> list[int]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        if self._special.keys().isdisjoint(encoded.ids):
            return encoded.ids
        spans = zip(encoded.ids, encoded.offsets, strict=True)
        return [i for id_, (start, end) in spans for i in self._spelled(id_, text[start:end])]

    def _spelled(self, id_: int, text: str) -> list[int]:
        """[id_], or the ids of single letters where `text` is the name of a special token.

        The model finds such a token where it is one of its pieces, as in T5. The unknown token and
        bytes mostly stand for other letters, not for their own names.
        """
        token = self._special.get(id_)
        if token is None or token not in self._normalized(text):
            return [id_]
        return [piece.id for letter in token for piece in self._tokenizer.model.tokenize(letter)]

    def _normalized(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def encode_template(self, text: str) -> list[int]:
        if not any(token in text for token in self._special.values()):
            return self.encode(text)
        tokenizer = copy.deepcopy(self._tokenizer)  # threads share the setting of one tokenizer
        tokenizer.encode_special_tokens = False
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as the base class says.

        Where EOS is also BOS, `ids` must begin with the text.
        """
        left_out = (self.pad_id, self.bos_id)
        kept = [i for i in _before(self.eos_id, ids) if i not in left_out]
        return self._tokenizer.decode(kept, skip_special_tokens=True)


def _without_ids_from(end: int, content: dict) -> dict:
    """A tokenizer.json without added tokens of ids from `end` on; unchanged if it has none."""
    added = content.get("added_tokens", [])
    kept = [token for token in added if token["id"] < end]
    return content if len(kept) == len(added) else content | {"added_tokens": kept}


def _before(eos_id: int, ids: Iterable[int]) -> list[int]:
    """The ids before the first EOS."""
    ids = [int(i) for i in ids]
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _unk_id(model: Mapping[str, object], ids: Mapping[str, int]) -> int | None:
    """The unknown token's id. A Unigram model has the id itself, the others the token's name."""
    return model.get("unk_id", ids.get(model.get("unk_token")))


def sentencepiece(path: str) -> SentencePieceVocabulary:
    """The vocabulary of a SentencePiece model file. Raises as `SentencePieceVocabulary`."""
    return SentencePieceVocabulary(path)


def byte() -> ByteVocabulary:
    """UTF-8 bytes: pad 0, EOS 1, unknown 2, then the 256 bytes."""
    return ByteVocabulary()


def huggingface(
    path: str,
    family: str | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
) -> HuggingFaceVocabulary:
    """The vocabulary of a tokenizer.json. Arguments and errors as `HuggingFaceVocabulary`'s."""
    return HuggingFaceVocabulary(path, family, bos_token, eos_token, pad_token)


def beside_weights(folder: str | pathlib.Path) -> Vocabulary:
    """The vocabulary of the tokenizer in a folder with weights and their config.json.

    Raises:
      CalrecError: there is none, or as `HuggingFaceVocabulary` and `SentencePieceVocabulary`.
    """
    folder = pathlib.Path(folder)
    if (folder / "tokenizer.json").is_file():
        described = read_object(folder / "config.json")
        num_embeddings = described.get("text_config", described).get("vocab_size")
        path = str(folder / "tokenizer.json")
        return HuggingFaceVocabulary(path, num_embeddings=num_embeddings)
    if (folder / "tokenizer.model").is_file():
        return SentencePieceVocabulary(str(folder / "tokenizer.model"))
    raise CalrecError(
        f"{folder} has neither tokenizer.json nor tokenizer.model: put the model's tokenizer "
        f"beside its weights"
    )


def carried(path: str) -> Vocabulary:
    """The vocabulary that `calrec convert` stored with the weights in the folder `path`.

    Raises:
      CalrecError: as `beside_weights`.
    """
    return beside_weights(pathlib.Path(path) / "hf")


def bos_id(vocabulary: VocabularyLike) -> int:
    """The id that starts a sequence: the vocabulary's own BOS, otherwise its pad id, as T5 does."""
    try:
        own = vocabulary.bos_id
    except NotImplementedError:  # SeqIO vocabularies without BOS may raise it
        own = None
    return own if own is not None and own >= 0 else vocabulary.pad_id


def encode_template(vocabulary: VocabularyLike, text: str) -> list[int]:
    """The ids of a template's sentence, see `Vocabulary.encode_template`.

    Args:
      vocabulary: SeqIO's own vocabularies encode a sentence as any text.
    """
    return getattr(vocabulary, "encode_template", vocabulary.encode)(text)


_PROBE = (
    "Title: Garden hose, 25 m (2-pack) | Brand: VELMO\t$19.99\n caf\u00e9 \u6f22\u5b57 \U0001f6b4"
)


def fingerprint(vocabulary: VocabularyLike) -> str:
    """A short string that differs where token ids could differ.

    Args:
      vocabulary: SeqIO's bytes and SentencePiece have the fingerprints of ours; another class is
        identified by its name, its size and the ids of one text.
    """
    own = getattr(vocabulary, "fingerprint", None)
    if own is not None:
        return own
    kind = type(vocabulary)
    if hasattr(vocabulary, "sp_model"):
        return f"{kind.__name__}:{_digest(vocabulary.sp_model)}"
    size = f"{kind.__name__}:{vocabulary.vocab_size}"
    if (kind.__module__, kind.__name__) == ("seqio.vocabularies", "ByteVocabulary"):
        return size
    ids = " ".join(str(i) for i in vocabulary.encode(_PROBE))
    return f"{size}:{_digest(ids.encode())}"


def optional_library(name: str) -> ModuleType:
    """The module `name`, which not all vocabularies need.

    Raises:
      CalrecError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CalrecError(
            f"this vocabulary needs the library {name}, which cannot be imported ({error}): "
            f"pip install {name}"
        ) from error
