"""Hospitals that train one model together, and can each ask to be forgotten."""
