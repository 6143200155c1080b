"""What `fedunlearn` can be told to do, a function each; torch is imported within those that need it."""
