"""Domains as SeqIO's tasks, for all who read them through SeqIO, as T5X does."""
