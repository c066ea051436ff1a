"""`calrec vocab`: trains a SentencePiece vocabulary on the texts that domains train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int
from calrec_jax.errors import CalrecError, full_disk_named, is_full_disk, local_path
from calrec_jax.text.templates import Template


def main(argv: Sequence[str]) -> int:
    """Trains the vocabulary and writes its model file."""
    args = _parse_arguments(argv)
    local_path(args.out, "--out")
    from calrec_jax.data import vocabularies
    from calrec_jax.data.preparation import sentencepiece_training

    template = Template()
    texts = [
        text
        for domain in args.domains
        for text in sentencepiece_training.training_texts(args.data_dir, domain, template)
    ]
    with full_disk_named(args.out):
        # The template's own sentences are in every prompt, so each becomes one piece.
        try:
            sentencepiece_training.train(texts, args.out, args.size, template.fixed_strings)
        except OSError as error:
            if is_full_disk(error):
                raise
            raise CalrecError(f"cannot write {args.out}: {error.strerror}") from error
    size = vocabularies.sentencepiece(args.out).vocab_size
    print(f"{args.out}: {size} pieces, from {len(texts)} items")
    return 0


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("calrec vocab", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--data_dir", required=True, metavar="STORE", help="the store that holds the domains"
    )
    parser.add_argument(
        "--domains",
        required=True,
        metavar="A,B",
        help="names of datasets in the store; the text of the items in their training histories is "
        "what the vocabulary is trained on",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        default=2000,
        metavar="N",
        help="the greatest number of pieces, which include 256 bytes and each character of the "
        "texts; few texts give fewer (default: 2000)",
    )
    parser.add_argument("--out", required=True, metavar="FILE.model", help="the file to write")
    args = parser.parse_args(argv)
    args.domains = [name for name in args.domains.split(",") if name]
    if not args.domains:
        parser.error("--domains names no domain")
    return args


if __name__ == "__main__":
    sys.exit(calrec(["vocab", *sys.argv[1:]]))
