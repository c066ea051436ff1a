"""Raw dumps to batches. The one package, with `tasks`, that uses TensorFlow."""

import os

# Before any module here imports TensorFlow: its greetings are not for our users.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
