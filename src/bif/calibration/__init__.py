"""Choose the open settings and the estimator within time and memory, and say why."""
