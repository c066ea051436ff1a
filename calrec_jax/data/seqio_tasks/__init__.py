"""Domains as SeqIO tasks, for code that reads them through SeqIO, as T5X does."""
