"""From raw dumps to batches.

`preparation` makes a dataset of the `store` from raw files (`sources`). A run's `domains` are read
from that dataset, or from arrays that were saved of it (`store.arrays`), and become `examples`,
rows (`schedule`, `packing`) and batches (`loader`).

TensorFlow, SeqIO and TFDS write and read the store, and make `seqio_tasks` of the domains, all
through `store.quiet_tensorflow`. Reading saved arrays and making batches needs none of them.
"""
