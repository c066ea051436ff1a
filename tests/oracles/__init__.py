"""Slow, plain NumPy float64 transcriptions of the method, which tests compare the product with."""
