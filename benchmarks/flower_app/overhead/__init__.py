"""The work of `benchmarks/on_flower.py`, as an app on Flower."""
