"""What the theory says of a model, for people: a section each, of sentences, a table and pictures."""
