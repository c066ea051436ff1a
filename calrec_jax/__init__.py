"""calrec_jax: two-stage finetuning of decoder LLMs for sequential recommendation (CALRec).

    import calrec_jax
    recommender = calrec_jax.Recommender.load("runs/quickstart/model")
    recommender.recommend([["item id", ...]], k=10)

Importing this package imports neither JAX nor TensorFlow; using `Recommender` does.
"""

__version__ = "0.1.0"

__all__ = ["CalrecError", "Recommendation", "Recommender", "__version__"]


def __getattr__(name: str):
    if name in ("Recommendation", "Recommender"):
        from calrec_jax import recommender

        return getattr(recommender, name)
    if name == "CalrecError":
        from calrec_jax.errors import CalrecError

        return CalrecError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
