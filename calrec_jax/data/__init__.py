"""Raw dumps to batches."""
