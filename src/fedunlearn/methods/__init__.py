"""Methods of unlearning, one file each."""
