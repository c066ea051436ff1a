"""A checkpoint of one large tensor, and a process that restores its part: python restoring.py DIR.

It joins others as the command line does, and writes DIR/report_PROCESS.json: bytes that it read,
that its devices hold, and by which its memory grew at most.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import ml_dtypes
import numpy as np

from calrec_jax.checkpoints import streamed

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def changed(config, **fields):
    """`config` with other fields."""
    return dataclasses.replace(config, **fields)


def write(folder: pathlib.Path, rows: int, width: int) -> int:
    """Writes {"embedding": [rows, width]}, bfloat16 noise in 32 pieces; returns its bytes."""
    step = rows // 32
    rng = np.random.default_rng(0)

    def pieces():
        for first in range(0, rows, step):
            noise = rng.integers(0, 1 << 16, (step, width), np.uint16)  # nothing to compress
            yield (slice(first, first + step), slice(None)), noise.view(BFLOAT16)

    made = streamed.Streamed((rows, width), BFLOAT16, (step, width), pieces)
    streamed.write_params(folder / "checkpoints", {"embedding": made})
    return made.nbytes


def _peak() -> int:
    """Bytes of resident memory at most so far."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(folder: pathlib.Path) -> None:
    """Restores this process's part."""
    import jax
    import tensorstore as ts
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from calrec_jax.checkpoints.manager import Checkpoints
    from calrec_jax.parallel.mesh import MeshConfig, make_mesh
    from calrec_jax.training import processes

    assert processes.join_processes()
    mesh = make_mesh(MeshConfig(8, 1))
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    (shape, dtype) = checkpoints.param_shapes(0)["embedding"]
    sharding = NamedSharding(mesh, P("data"))
    wanted = {"embedding": jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)}

    def bytes_read() -> int:
        path = "/tensorstore/kvstore/file/bytes_read"
        return ts.experimental_collect_matching_metrics(path)[0]["values"][0]["value"]

    # The peak so far may be of what has been let go of; growth is counted from what is held.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    read, before = bytes_read(), _peak()
    params = jax.block_until_ready(checkpoints.restore_params(0, wanted))
    report = {
        "read": bytes_read() - read,
        "held": sum(s.data.nbytes for s in params["embedding"].addressable_shards),
        "peak": _peak() - before,
    }
    (folder / f"report_{jax.process_index()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
