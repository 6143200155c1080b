"""``python -m fedunlearn``."""

from fedunlearn.cli import main

main()
