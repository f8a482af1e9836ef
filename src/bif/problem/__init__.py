"""What is asked: model, loss, items, observables, and the identity of all that."""
