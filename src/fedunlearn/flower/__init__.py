"""The same methods on Flower: a federation over its grid, the app of its clients, and a grid in this process."""
