"""Training of a SentencePiece vocabulary, and the texts that it is trained on."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from calrec_jax.data.vocabularies import optional_library
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

_MAX_PIECES = 1_000_000  # with more, the library may never end
_SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")  # in the order of their ids
_RESERVED = "\u2585"  # the library ignores texts that hold it
_DEFAULT_LENGTH, _MAX_LENGTH = 4192, 2**30  # bytes of a text; the library ignores longer ones


def training_texts(data_dir: str, dataset: str, template: Template) -> Iterator[str]:
    """The text of each item in the training histories of a dataset, once.

    Args:
      data_dir: the store.

    Raises:
      CalrecError: there is no such dataset, or it has no training sequences.
    """
    from calrec_jax.data.store import reader  # TensorFlow, which `train` does not need

    catalogue = reader.read_catalogue(data_dir, dataset)
    sequences = reader.read_sequences(data_dir, dataset, "train")
    item_ids = [item_id for sequence in sequences for item_id in sequence.item_ids]
    places = sorted(set(catalogue.places(item_ids)))
    if not places:
        raise CalrecError(f"{dataset} in {data_dir} has no training sequences")
    for place in places:
        yield template.render_item(catalogue.fields[place])


def train(
    texts: Iterable[str],
    path: str | pathlib.Path,
    vocab_size: int,
    whole_pieces: Sequence[str] = (),
) -> None:
    """Trains a unigram model on `texts` and writes it to `path`. The same texts give the same file.

    The model is lossless: no normalisation, no dummy prefix, all white space kept, unknown
    characters as bytes. The exceptions are NUL and U+2581, which SentencePiece uses for the space;
    U+2585, which it reserves, is always encoded as bytes. Ids: pad 0, EOS 1, unknown 2, BOS 3.

    Args:
      texts: the model is trained on all of them, however long they are.
      path: the file to write, ending in .model.
      vocab_size: the greatest number of pieces; few texts give fewer.
      whole_pieces: strings that become one piece each, wherever they stand: the sentences and
        labels of a template, which would otherwise take most of a prompt's tokens.

    Raises:
      CalrecError: `vocab_size` is too small for the texts, or over a million; the texts are empty,
        or one has over a GiB; a whole piece has the name of a special token or a byte; or the
        library sentencepiece is missing.
    """
    library = optional_library("sentencepiece")
    path = pathlib.Path(path)
    if path.suffix != ".model":
        raise CalrecError(f"{path}: a SentencePiece model's file ends in .model")
    if vocab_size > _MAX_PIECES:
        raise CalrecError(f"no vocabulary of {vocab_size} pieces is made: {_MAX_PIECES} are most")
    parts = [part for text in texts for part in text.split(_RESERVED) if part]
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(parts),
            **_lengths(parts),
            model_writer=model,  # a file's name would become part of the model
            vocab_size=max(vocab_size, len(_SPECIAL)),  # with fewer, errors do not name the minimum
            hard_vocab_limit=False,  # few texts give fewer pieces
            model_type="unigram",
            user_defined_symbols=_symbols(whole_pieces),
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            num_threads=1,  # with more, the model would depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise CalrecError(
            f"no vocabulary of {vocab_size} pieces from these texts: {_reason(str(error))}"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def _lengths(texts: Sequence[str]) -> dict[str, int]:
    """The arguments with which the library ignores no text; {} where its defaults suffice.

    Arguments are part of the model's file: needless ones would change it for the same texts.

    Raises:
      CalrecError: there is no text, or one that is longer than the library takes.
    """
    longest = max((len(text.encode(errors="surrogatepass")) for text in texts), default=0)
    if not longest:
        raise CalrecError(
            "no vocabulary without text: the items have none of the fields that the template shows"
        )
    if longest > _MAX_LENGTH:
        raise CalrecError(
            f"no vocabulary from a text of {longest} bytes, {_MAX_LENGTH} are most: shorten it"
        )
    return {"max_sentence_length": longest} if longest > _DEFAULT_LENGTH else {}


def _symbols(whole_pieces: Sequence[str]) -> list[str]:
    """`whole_pieces` as the library takes them, without duplicates."""
    for piece in whole_pieces:
        if piece in _SPECIAL or re.fullmatch("<0x[0-9A-F]{2}>", piece):
            raise CalrecError(
                f"{piece!r} is the name of a special token or a byte, and no text can be one piece "
                f"of that name: leave it out of the template"
            )
    return list(dict.fromkeys(piece.replace(" ", "\u2581") for piece in whole_pieces if piece))


def _reason(message: str) -> str:
    """The reason that the library's error gives, and what to do about it."""
    needed = re.search(r"smaller than required_chars. \d+ vs (\d+)", message)
    if needed:
        least = needed[1]
        return f"every character is a piece, so at least {least} are needed: give that size or more"
    last = message.strip().splitlines()[-1]
    return f"SentencePiece says {last!r}; try another size or other texts"
