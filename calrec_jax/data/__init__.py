"""Raw dumps to batches.

`prepare` makes a dataset of the `store` from raw files (`sources`), by `sequences.Rules` and with
one `engine` or another. A run's `domains` are read from it (`stored`), or from what was saved of it
(`arrays`), and become `examples`, rows (`schedule`, `packing`) and batches (`loader`).

TensorFlow, SeqIO and TFDS write and read the store, and make SeqIO tasks of the domains
(`registry`), all through `quiet_tensorflow`. Saved arrays, and what makes batches, need none of
them.
"""
