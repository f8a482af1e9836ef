"""Cost against the size of a language model, the items and the queries."""
