"""Raw dumps to batches. The one package, with `tasks`, that uses TensorFlow."""
