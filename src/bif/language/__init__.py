"""Language models: text to items, and losses that scale to large vocabularies."""
