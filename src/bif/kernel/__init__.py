"""The loss kernel: which data the model sees as alike."""

from bif.estimate.loss_kernel import LossKernel
from bif.kernel.agreement import Agreement, AgreementFigure, agreement
from bif.kernel.class_tree import ClassTree, read_tree, tree_of
from bif.kernel.described import describe
from bif.kernel.of_run import loss_kernel

__all__ = [
    "Agreement",
    "AgreementFigure",
    "ClassTree",
    "LossKernel",
    "agreement",
    "describe",
    "loss_kernel",
    "read_tree",
    "tree_of",
]
