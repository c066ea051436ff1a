"""`calrec`: one command. Each subcommand is a module that is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from calrec_jax import __version__
from calrec_jax.errors import CalrecError, full_disk_named

COMMANDS = {
    "synthetic": "write the embedded store: made-up domains to try everything on",
    "prepare": "turn a raw dump into a dataset of the store",
    "vocab": "train a SentencePiece vocabulary on the text of domains",
    "inspect": "show what each stage would train on, before it costs anything",
    "batches": "save what batches are made of, to train without TensorFlow",
    "convert": "bring weights from Hugging Face's checkpoints, and back",
    "train": "run the stages of a gin configuration, or go on with them",
    "eval": "generate, retrieve and measure, beside the baselines",
    "baseline": "train SASRec on a domain, and measure it in the same way",
    "report": "show a run on a page with its results, or compare runs",
    "recommend": "rank a domain's catalogue for histories of your own",
    "sweep": "train and evaluate every trial of a YAML file, and compare them",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the first argument; the command itself parses what follows."""
    listed = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        "calrec",
        usage="calrec COMMAND [ARGUMENTS]",
        description="Two-stage finetuning of decoder LLMs for sequential recommendation (CALRec).",
        epilog="\n".join(["commands:", *listed, "", "`calrec COMMAND --help` shows more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"calrec {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. A mistake that its user can mend becomes one line and an exit code.

    Returns:
      The command's exit code: 0, 1 for an error, 42 when it was stopped and has saved, 130 when it
      was interrupted. Wrong usage exits with 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # The command parses the rest: this parser would answer its --help.
    name = build_parser().parse_args(argv[:1]).command
    command = importlib.import_module(f"calrec_jax.cli.{name}")
    try:
        with full_disk_named("the working directory, the temporary folder or standard output"):
            code = command.main(argv[1:])
            sys.stdout.flush()
            return code
    except (CalrecError, KeyboardInterrupt) as error:
        return show_error(name, error)
    except BrokenPipeError:
        # The reader has closed the output, as in `calrec recommend ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def show_error(name: str, error: BaseException) -> int:
    """Prints the error that ended the subcommand `name`; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        _write_line(f"calrec {name}: interrupted")
        return 130
    if isinstance(error, CalrecError):
        _write_line(f"calrec {name}: error: {error}")
    else:
        traceback.print_exception(error)
    return 1


def _write_line(text: str) -> None:
    # In one write: lines of processes that share a terminal would otherwise be mixed.
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def positive_int(text: str) -> int:
    """Parses an argument that is a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def console() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    sys.exit(main())
