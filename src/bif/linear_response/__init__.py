"""The response estimator: influence from pairs of chains around each query."""
