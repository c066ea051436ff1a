"""From generated text to scores and rankings; retrievers themselves are in eval/retrievers.py."""
