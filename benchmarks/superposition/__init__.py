"""Stages of a toy that puts more features than dimensions into its weights."""
