"""`calrec convert`: weights from checkpoints of Hugging Face and T5X, and back."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from calrec_jax import files
from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import CalrecError, full_disk_named, local_path

_SHARD_GB = 5.0  # as transformers does


def main(argv: Sequence[str]) -> int:
    """Converts, and prints what was written."""
    args = _parse_arguments(argv)
    if args.from_t5x:
        print(_import_t5x(args))
        return 0
    ways = {"to": _import_hf, "to_hf": _export_hf, "to_peft": _export_peft}
    flag = next(name for name in ways if getattr(args, name))
    target = local_path(getattr(args, flag), f"--{flag}")
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise CalrecError(f"{target} is there already: give a folder that is empty or new")
    with full_disk_named(target), files.new_folder(target) as folder:
        written = ways[flag](args, folder)
    print(f"{target}: {written}")
    return 0


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if bool(args.source) == bool(args.to):
        parser.error("--from_hf and --from_t5x go with --to, --from with --to_hf or --to_peft")
    if not args.to_hf and (args.dtype or args.family or args.max_shard_gb):
        parser.error("--dtype, --family and --max_shard_gb go with --to_hf")
    return args


def _gigabytes(text: str) -> float:
    """Parses an argument that is a size in GB."""
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("calrec convert", description=__doc__, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from_hf", metavar="DIR", help="a checkpoint of transformers: config.json, *.safetensors"
    )
    source.add_argument(
        "--from",
        dest="source",
        metavar="DIR/STAGE:WHICH",
        help="a checkpoint of calrec, MODEL_DIR/stage2:best or DIR/pretrained:latest",
    )
    source.add_argument("--from_t5x", metavar="DIR", help="a checkpoint of T5X, .../checkpoint_300")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--to",
        metavar="DIR",
        help="with --from_hf: the folder that a run's PRETRAINED names; with --from_t5x: a new "
        "stage, MODEL_DIR/stage2",
    )
    target.add_argument(
        "--to_hf",
        metavar="DIR",
        help="with --from: the folder for transformers; adapters are merged into the weights",
    )
    target.add_argument(
        "--to_peft", metavar="DIR", help="with --from: the folder for PEFT, with a stage's adapters"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="with --to_hf: the type of the weights that are written (default: as they are saved)",
    )
    parser.add_argument(
        "--family",
        metavar="MODEL_TYPE",
        help="with --to_hf: the model_type of weights that came from no checkpoint of transformers "
        "(default: the first that can express them)",
    )
    parser.add_argument(
        "--max_shard_gb",
        type=_gigabytes,
        metavar="GB",
        help="with --to_hf: the size of a file, which one larger tensor may exceed (default: 5)",
    )
    return parser


def _import_t5x(args: argparse.Namespace) -> str:
    """Writes --from_t5x as a stage. Returns what was written, in words, as all conversions do."""
    from calrec_jax.training import t5x_io

    step = t5x_io.to_stage(args.from_t5x, args.to)
    return f"{args.to}: step {step}, parameters alone"


def _import_hf(args: argparse.Namespace, folder: pathlib.Path) -> str:
    from calrec_jax.checkpoints import hf_io
    from calrec_jax.data import vocabularies
    from calrec_jax.training import conversion

    source = pathlib.Path(args.from_hf)
    weights = hf_io.read(source)
    vocabulary = vocabularies.beside_weights(source)
    weights.config.with_vocab_size(vocabulary.vocab_size)  # raises where the model has fewer ids
    return conversion.write_pretrained(
        source, weights, vocabularies.fingerprint(vocabulary), folder
    )


def _export_hf(args: argparse.Namespace, folder: pathlib.Path) -> str:
    from calrec_jax.training import conversion

    return conversion.write_transformers(
        args.source,
        folder,
        dtype=args.dtype,
        family=args.family,
        max_shard_gb=args.max_shard_gb or _SHARD_GB,
        warn=_warn,
    )


def _export_peft(args: argparse.Namespace, folder: pathlib.Path) -> str:
    from calrec_jax.training import conversion

    return conversion.write_peft(args.source, folder)


def _warn(line: str) -> None:
    print(f"calrec convert: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(calrec(["convert", *sys.argv[1:]]))
