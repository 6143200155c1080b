"""How well a method did, and what it cost."""
