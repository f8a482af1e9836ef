"""Sample chains from w*: posterior, samplers, gradient oracles, mass, engine."""
