"""Training of a SentencePiece vocabulary."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Iterable, Sequence

from calrec_jax.data.libraries import optional_library
from calrec_jax.errors import CalrecError

_MOST_PIECES = 1_000_000  # the library may never end with more


def train(
    texts: Iterable[str],
    path: str | pathlib.Path,
    vocab_size: int,
    whole_pieces: Sequence[str] = (),
) -> None:
    """Trains a unigram model on `texts` and writes it to `path`. The same texts, the same file.

    It has `vocab_size` pieces at most.

    It is lossless: no normalisation, no dummy prefix, all white space kept, unknown characters as
    bytes. Only NUL and U+2581, as which SentencePiece writes a space, do not come back. pad 0,
    EOS 1, unknown 2, BOS 3.

    Args:
      whole_pieces: strings that become one piece each, wherever they stand: the sentences and
        labels of a template, which would else take most of a prompt's tokens.

    Raises:
      CalrecError: `vocab_size` is too small for the texts, or over a million; or the library
        sentencepiece is missing.
    """
    library = optional_library("sentencepiece")
    path = pathlib.Path(path)
    if path.suffix != ".model":
        raise CalrecError(f"{path}: a SentencePiece model's file ends in .model")
    if vocab_size > _MOST_PIECES:
        raise CalrecError(f"no vocabulary of {vocab_size} pieces is made: {_MOST_PIECES} are most")
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,  # a file's name would go into the model, and into its fingerprint
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # few texts give fewer pieces
            model_type="unigram",
            user_defined_symbols=[piece.replace(" ", "\u2581") for piece in whole_pieces],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            num_threads=1,  # more would make the outcome depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        needed = re.search(r"smaller than required_chars. \d+ vs (\d+)", reason)
        if needed:
            reason = f"every character is a piece, so at least {needed[1]} are needed"
        raise CalrecError(
            f"no vocabulary of {vocab_size} pieces from these texts: {reason}"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
