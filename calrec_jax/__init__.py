"""calrec_jax: two-stage finetuning of decoder LLMs for sequential recommendation (CALRec)."""

__version__ = "0.1.0"
