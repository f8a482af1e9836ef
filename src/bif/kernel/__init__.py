"""The loss kernel: which data the model sees as alike."""

from bif.estimate.loss_kernel import LossKernel
from bif.kernel.agreement import Agreement, AgreementFigure, agreement
from bif.kernel.class_tree import ClassTree, read_tree, tree_of
from bif.kernel.described import describe
from bif.kernel.layout import layout, layout_stability
from bif.kernel.mapping import item_map, map_series
from bif.kernel.of_run import loss_kernel, pictures_of
from bif.report.map_source import ItemMap

__all__ = [
    "Agreement",
    "AgreementFigure",
    "ClassTree",
    "ItemMap",
    "LossKernel",
    "agreement",
    "describe",
    "item_map",
    "layout",
    "layout_stability",
    "loss_kernel",
    "map_series",
    "pictures_of",
    "read_tree",
    "tree_of",
]
