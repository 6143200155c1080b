"""What can still be found out of what was to be forgotten: attacks, as functions over models and data."""
