"""What becomes of a deletion request in a running federation: filed, entered, answered, proved."""
