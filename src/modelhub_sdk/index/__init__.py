"""The index: SQL tables folded from the journal, and the only SQL about state. A cache, rebuilt at will."""
