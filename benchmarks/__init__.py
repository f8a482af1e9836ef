"""Measurements behind the documentation: `python -m benchmarks.NAME`, from the project's root.

Each writes one dated JSON file; `python -m benchmarks.pages` puts them into the documentation.
"""
