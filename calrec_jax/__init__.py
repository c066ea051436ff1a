"""calrec_jax: two-stage finetuning of decoder LLMs for sequential recommendation (CALRec).

    import calrec_jax
    recommender = calrec_jax.Recommender.load("runs/quickstart/model")
    recommender.recommend([["item id", ...]], k=10)

docs/python.md has all names of `__all__`, examples/two_stage.py a whole run. Importing this package
imports neither JAX nor TensorFlow; the first use of a name imports what is behind it.
"""

import importlib

__version__ = "0.2.0"

_MODULES = {
    "BM25Config": "retrieval.bm25",
    "CalrecError": "errors",
    "DataConfig": "data.domains",
    "DecoderConfig": "models.config",
    "EvaluationConfig": "eval.evaluation",
    "LoraConfig": "models.lora",
    "LossConfig": "losses",
    "MeshConfig": "parallel.mesh",
    "OptimizerConfig": "training.optimizer",
    "Preempted": "training.preemption",
    "Recommendation": "recommender",
    "Recommender": "recommender",
    "Run": "runs.run",
    "SamplingConfig": "decode.sampling",
    "Stage": "training.stages",
    "Template": "text.templates",
    "evaluate": "runs.evaluate",
    "load_run": "configs.load",
    "preset": "models.presets",
    "pretrained": "training",
    "register_domain": "data.registry",
    "register_mixture": "data.registry",
    "train": "runs.train",
    "vocabularies": "data",
}
"""{name: the module that has it}."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{_MODULES[name]}"
    if name in ("pretrained", "vocabularies"):  # modules themselves
        return importlib.import_module(f"{module}.{name}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
