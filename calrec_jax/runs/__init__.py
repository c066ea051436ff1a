"""Runs: what one is made of, its training, its trained model, and its evaluation."""
