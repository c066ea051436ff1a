"""How long `calrec convert` takes, and how much memory, both ways.

    python benchmarks/convert.py FOLDER

A made-up Gemma in bfloat16 is written to FOLDER, whose embedding is by far its largest tensor, then
converted and converted back. Prints one JSON line for each way: seconds, gigabytes a second of
weights, and the peak of resident memory (VmHWM) beside what it may be: 1.3 times the largest tensor
and 500 MB.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from calrec_jax.checkpoints import hf_io, safetensors_io
from calrec_jax.checkpoints.hf_families import read_config
from calrec_jax.checkpoints.hf_maps import Entry, entries
from calrec_jax.checkpoints.safetensors_io import TensorToWrite

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_MEASURED = """
import sys
from calrec_jax.cli import main
code = main.main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
sys.exit(code)
"""


def main() -> None:
    """Prints the figures, a JSON object for each way."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--vocab_size", type=int, default=262_144)
    parser.add_argument("--d_model", type=int, default=2048)
    parser.add_argument("--d_ff", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()

    for name in ("hf", "ours", "back"):
        shutil.rmtree(args.folder / name, ignore_errors=True)
    hf, ours, back = (args.folder / name for name in ("hf", "ours", "back"))
    largest, total = _write_checkpoint(hf, args)
    sizes = {"largest_mb": largest // 10**6, "total_mb": total // 10**6}
    for way, flags in (
        ("from_hf", [f"--from_hf={hf}", f"--to={ours}"]),
        ("to_hf", [f"--from={ours}/pretrained:latest", f"--to_hf={back}"]),
    ):
        seconds, peak = _measure(["convert", *flags])
        figures = {
            "way": way,
            **sizes,
            "seconds": round(seconds, 1),
            "gb_a_second": round(total / 1e9 / seconds, 2),
            "peak_mb": peak // 10**6,
            "allowed_mb": int(1.3 * largest + 500e6) // 10**6,
        }
        print(json.dumps(figures))
    print(json.dumps({"same_bytes": _same(hf, back)}))


def _write_checkpoint(folder: pathlib.Path, args: argparse.Namespace) -> tuple[int, int]:
    """Returns the bytes of the largest tensor and of all."""
    config = {
        "model_type": "gemma",
        "vocab_size": args.vocab_size,
        "hidden_size": args.d_model,
        "intermediate_size": args.d_ff,
        "num_hidden_layers": args.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    words = {"<bos>": 0, "<eos>": 1, "<pad>": 2}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel"}}
    tokenizer["model"] |= {"vocab": words, "unk_token": "<pad>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    table = entries(hf_io.parameter_shapes(read_config(config)[1]))
    tensors = [
        TensorToWrite(name, _BFLOAT16, entry.hf_shape, _random_rows(entry))
        for entry in table
        for name in entry.tensors
    ]
    safetensors_io.write(folder / "model.safetensors", tensors)
    sizes = [tensor.num_bytes for tensor in tensors]
    return max(sizes), sum(sizes)


def _random_rows(entry: Entry) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for rows, _ in entry.blocks(_BFLOAT16.itemsize):
        shape = (rows.stop - rows.start, *entry.hf_shape[1:])
        yield rng.standard_normal(shape, np.float32).astype(_BFLOAT16)


def _measure(argv: list[str]) -> tuple[float, int]:
    """Seconds and bytes of resident memory at most of a `calrec` command."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *argv], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - begun, int(done.stdout.split()[-1]) * 1024


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether the tensors of two folders are the same, to the byte."""
    a, b = hf_io.read(one).tensors, hf_io.read(other).tensors
    return a.keys() == b.keys() and all(
        a[name].read_rows(*block).tobytes() == b[name].read_rows(*block).tobytes()
        for name in a
        for block in safetensors_io.row_blocks(a[name].shape[0], a[name].row_bytes)
    )


if __name__ == "__main__":
    main()
