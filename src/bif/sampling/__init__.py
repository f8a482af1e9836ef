"""Chains at w*: posterior, samplers, gradient oracles, mass, engine."""
