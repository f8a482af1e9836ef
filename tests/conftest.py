"""Settings of the whole suite."""

import torch

# The tensors of the tests are small, and the workers of `pytest -n` already fill the cores.
torch.set_num_threads(1)
