"""The loss kernel: which data the model sees as alike."""

from bif.estimate.loss_kernel import LossKernel
from bif.kernel.described import describe
from bif.kernel.of_run import loss_kernel

__all__ = ["LossKernel", "describe", "loss_kernel"]
