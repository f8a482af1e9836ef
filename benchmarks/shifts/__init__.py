"""How far influence predicts a shift of the training data, beside networks that are retrained."""
