"""TensorFlow as the data layer wants it: without chatter, and on the CPU alone.

Importing TensorFlow any other way would let it take the accelerators' memory from JAX.
"""

from __future__ import annotations

import logging

import tensorflow as tf
import tensorflow_datasets as tfds

tf.config.set_visible_devices([], "GPU")
tf.get_logger().setLevel(logging.ERROR)
logging.getLogger("absl").setLevel(logging.ERROR)
tfds.disable_progress_bar()

__all__ = ["tf", "tfds"]
