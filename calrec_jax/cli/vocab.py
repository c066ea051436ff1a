"""`calrec vocab`: trains a SentencePiece vocabulary on the item texts of domains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from calrec_jax.cli.main import run_command


def main(argv: Sequence[str]) -> int:
    """Writes the model file."""
    parser = argparse.ArgumentParser("calrec vocab", description=__doc__)
    parser.add_argument("--data_dir", required=True, help="the store")
    parser.add_argument("--domains", required=True, metavar="A,B", help="datasets of the store")
    parser.add_argument("--size", type=int, default=2000, help="pieces at most")
    parser.add_argument("--out", required=True, metavar="FILE.model", help="the file to write")
    args = parser.parse_args(argv)

    from calrec_jax.data import store, vocabularies
    from calrec_jax.text.templates import Template

    template = Template()
    texts = (
        template.render_item(fields)
        for domain in args.domains.split(",")
        for fields in store.read_catalogue(args.data_dir, domain).fields
    )
    vocabularies.train_sentencepiece(texts, args.out, args.size, template.fixed_strings)
    size = vocabularies.sentencepiece(args.out).vocab_size
    print(f"{args.out}: {size} pieces")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("vocab"))
