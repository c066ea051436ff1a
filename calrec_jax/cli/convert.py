"""`calrec convert`: weights from checkpoints of Hugging Face and T5X, and back."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax import files
from calrec_jax.cli.main import main as calrec
from calrec_jax.errors import CalrecError, full_disk_named, local_path
from calrec_jax.model_dir import ModelDir, StageDir

_SHARD_GB = 5.0  # as transformers writes by default


def main(argv: Sequence[str]) -> int:
    """Prints what was written."""
    args = _parse_arguments(argv)
    if args.from_t5x:
        print(_import_t5x(args))
        return 0
    way = next(name for name in _CONVERSIONS if getattr(args, name))
    target = local_path(getattr(args, way), f"--{way}")
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise CalrecError(f"{target} is there already: give a folder that is empty or new")
    with full_disk_named(target), files.new_folder(target) as making:
        written = _CONVERSIONS[way](args, making)
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
    """The number in --max_shard_gb; argparse reports what this raises."""
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
        help="a checkpoint of calrec: model_dir/stage2:best, or DIR/pretrained:latest",
    )
    source.add_argument("--from_t5x", metavar="DIR", help="a checkpoint of T5X: .../checkpoint_300")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--to",
        metavar="DIR",
        help="with --from_hf: the folder to write, for PRETRAINED; with --from_t5x: the stage to "
        "write, MODEL_DIR/stage2",
    )
    target.add_argument(
        "--to_hf",
        metavar="DIR",
        help="with --from: the folder to write for transformers; adapters are merged into weights",
    )
    target.add_argument(
        "--to_peft",
        metavar="DIR",
        help="with --from: the folder to write for PEFT, a stage's adapters",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="with --to_hf: the dtype of the weights that are written (default: as saved)",
    )
    parser.add_argument(
        "--family",
        metavar="MODEL_TYPE",
        help="with --to_hf: the family of weights that did not come from transformers (default: "
        "the first that can express them)",
    )
    parser.add_argument(
        "--max_shard_gb",
        type=_gigabytes,
        metavar="GB",
        help="with --to_hf: the largest size of a file, unless one tensor is larger (default: 5)",
    )
    return parser


def _import_t5x(args: argparse.Namespace) -> str:
    """Writes --from_t5x as a stage. Returns what was written, in words, as all conversions do."""
    from calrec_jax.training import t5x_io

    step = t5x_io.to_stage(args.from_t5x, args.to)
    return f"{args.to}: step {step}, parameters alone"


def _import(args: argparse.Namespace, making: pathlib.Path) -> str:
    """Writes --from_hf as weights to start from, see `training.pretrained`."""
    from calrec_jax.checkpoints import hf_io
    from calrec_jax.data import vocabularies
    from calrec_jax.training import manifest, pretrained
    from calrec_jax.training.identity import Identity

    source = pathlib.Path(args.from_hf)
    weights = hf_io.read(source)
    vocabulary = vocabularies.beside_weights(source)
    weights.config.with_vocab_size(vocabulary.vocab_size)  # raises where the model is smaller
    hf_io.carry(source, making / pretrained.CARRIED)
    hf_io.import_weights(weights, ModelDir(making).stage(pretrained.STAGE).checkpoints)
    dtypes = sorted({str(weights.dtype_of(entry)) for entry in weights.table})
    described = {
        "versions": manifest.versions(),
        **Identity(vocabularies.fingerprint(vocabulary), weights.config).described(),
        "stages": {},
        pretrained.STAGE: {
            "family": weights.model_type,
            "dtypes": dtypes,
            "source": str(source.absolute()),
        },
    }
    files.write_json(ModelDir(making).manifest, described)
    count = hf_io.num_parameters(hf_io.parameter_shapes(weights.config))
    return f"{weights.model_type}, {count:,} parameters in {', '.join(dtypes)}"


def _export(args: argparse.Namespace, making: pathlib.Path) -> str:
    """Writes --from for transformers."""
    import jax.numpy as jnp

    from calrec_jax.checkpoints import hf_io
    from calrec_jax.training import merged, pretrained

    stage, step, described = _find(args.source)
    origin = pretrained.origin(stage.model_dir)
    parts = merged.open_weights(stage, step)
    shapes = {name: part.shape for name, part in parts.items()}
    dtypes = {name: jnp.dtype(args.dtype or part.dtype) for name, part in parts.items()}
    # config.json names one dtype, in which transformers loads all weights.
    dtype = str(dtypes["embedding"])
    config = _hf_config(args, described, origin, dtype)

    if origin is None:
        _warn_without_tokenizer(args.source)
    else:
        hf_io.carry(origin, making)
    hf_io.export_weights(
        making,
        shapes,
        dtypes,
        lambda name, where: parts[name].read(where),
        int((args.max_shard_gb or _SHARD_GB) * 10**9),
    )
    # Not as `write_json`: what came with weights from elsewhere may hold infinities.
    files.write_text(making / hf_io.CONFIG, json.dumps(config, indent=2) + "\n")
    count = hf_io.num_parameters(shapes)
    return f"{config['model_type']}, {count:,} parameters in {dtype}"


def _find(source: str) -> tuple[StageDir, int, Mapping[str, Any]]:
    """The stage, the step and the manifest of what --from names."""
    from calrec_jax.training import manifest, weights

    stage, step = weights.find_checkpoint(".", source)
    described = manifest.read(stage.model_dir)
    if described is None:
        raise CalrecError(f"{source!r}: {stage.model_dir} has no manifest.json")
    return stage, step, described


def _export_adapters(args: argparse.Namespace, making: pathlib.Path) -> str:
    """Writes the adapters of --from for PEFT."""
    from flax.traverse_util import unflatten_dict

    from calrec_jax.checkpoints import peft, streamed
    from calrec_jax.training import pretrained, weights

    stage, step, described = _find(args.source)
    config = pretrained.decoder_of(described["model"], args.source)
    config = dataclasses.replace(config, lora=weights.lora_of(stage))
    if config.lora is None:
        raise CalrecError(f"{args.source!r} holds whole weights and no adapters: give --to_hf")
    stores = streamed.open_params(stage.checkpoints, step)
    adapters = {tuple(name.split("/")): store.read() for name, store in stores.items()}
    base = _base_name(stage)
    peft.write_adapters(making, unflatten_dict(adapters), config, base)
    return f"adapters of rank {config.lora.rank}, of {base}"


def _base_name(stage: StageDir) -> str:
    """The checkpoint that a stage's adapters belong to: the folder from transformers, or ours."""
    from calrec_jax.training import manifest, pretrained, weights

    found = weights.base_checkpoint(stage)
    if found is None:
        raise CalrecError(
            f"the adapters in {stage} were trained on fresh weights, which have no name"
        )
    base_stage, step = found
    if base_stage.name != pretrained.STAGE:
        return f"{base_stage}:{step}"  # which --to_hf converts
    return manifest.read(base_stage.model_dir)[pretrained.STAGE]["source"]


def _hf_config(
    args: argparse.Namespace,
    described: Mapping[str, Any],
    origin: pathlib.Path | None,
    dtype: str,
) -> dict[str, Any]:
    """The config.json that the weights came with, or one that is made for them.

    Args:
      described: the manifest.
      origin: the folder with the config.json that they came with; None where there is none.
      dtype: of the weights that are written.
    """
    from calrec_jax.checkpoints import hf_families, hf_io
    from calrec_jax.training import pretrained

    if origin is not None and args.family is None:
        path = origin / hf_io.CONFIG
        config = hf_families.text_config(hf_io.read_json(path), str(path))
        config.pop("torch_dtype", None)  # the key of transformers 4, which also reads the new one
        return config | {"dtype": dtype}
    decoder = pretrained.decoder_of(described["model"], args.source)
    stages = described["stages"].values()
    lengths = [sum(stage["task_feature_lengths"].values()) for stage in stages]
    return hf_families.write_config(decoder, args.family, dtype, max(lengths, default=1024))


def _warn_without_tokenizer(source: str) -> None:
    print(
        f"calrec convert: {source} came from no checkpoint of transformers: config.json is made "
        f"for it, and there is no tokenizer; put the one that it was trained with beside it",
        file=sys.stderr,
    )


_CONVERSIONS = {"to": _import, "to_hf": _export, "to_peft": _export_adapters}


if __name__ == "__main__":
    sys.exit(calrec(["convert", *sys.argv[1:]]))
