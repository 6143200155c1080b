"""The work of `benchmarks/flower.py`, as an app on Flower."""
