"""The decoder, its adapters, and the two towers that are read from it."""
