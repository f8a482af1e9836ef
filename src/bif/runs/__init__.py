"""Carry a run out and judge it: attribute, extend, merge, load, gates."""
