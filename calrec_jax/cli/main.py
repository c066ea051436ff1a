"""`calrec`: one command, its subcommands each a module that is imported only when it is called."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

from calrec_jax import __version__
from calrec_jax.errors import CalrecError

COMMANDS = {
    "synthetic": "write the embedded store: made-up domains to try everything on",
    "prepare": "turn a raw dump into a dataset of the store",
    "vocab": "train a SentencePiece vocabulary on the text of domains",
    "train": "run the stages of a gin configuration, or go on with them",
    "eval": "generate, retrieve and measure, beside the baselines",
    "report": "write MODEL_DIR/report.html and print the result table",
    "recommend": "rank a domain's catalogue for histories of your own",
    "sweep": "run a grid of gin overrides, one MODEL_DIR a trial",
}

_USAGE = "\n".join(
    [
        "usage: calrec COMMAND [ARGUMENTS]",
        "",
        "Two-stage finetuning of decoder LLMs for sequential recommendation (CALRec).",
        "",
        "commands:",
        *(f"  {name:<10} {help_}" for name, help_ in COMMANDS.items()),
        "",
        "`calrec COMMAND --help` tells more.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand. Returns the exit code: 0, 1 for a CalrecError, 2 for wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"calrec: error: no command {argv[0]!r}; see calrec --help", file=sys.stderr)
        return 2
    return run_command(argv[0], argv[1:])


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand, and turns what its user can mend into one line."""
    module = importlib.import_module(f"calrec_jax.cli.{name}")
    try:
        return module.main(sys.argv[1:] if argv is None else argv) or 0
    except CalrecError as error:
        print(f"calrec {name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"calrec {name}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"calrec {name}: error: no space left on the disk of {error.filename or 'MODEL_DIR'}: "
            f"free some and run the same command again",
            file=sys.stderr,
        )
        return 1


def console() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    sys.exit(main())
