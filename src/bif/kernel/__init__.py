"""The loss kernel: which data the model sees as alike."""

from bif.estimate.item_kernel import FeatureKernel, ItemKernel
from bif.estimate.loss_kernel import LossKernel
from bif.estimate.neighbours import (
    Neighbours,
    Stability,
    find_neighbours,
    neighbour_stability,
    recall,
    shared_neighbours,
)
from bif.estimate.suspects import suspects
from bif.estimate.token_overlap import TokenOverlap
from bif.kernel.agreement import Agreement, AgreementFigure, agreement
from bif.kernel.agreement_difference import AgreementDifference, agreement_difference
from bif.kernel.alignment import linear_cka
from bif.kernel.class_tree import ClassTree, read_tree, tree_of
from bif.kernel.cleaning import CleanedKernel, cleaned
from bif.kernel.clustering import Clusters, class_linkage, clusters
from bif.kernel.described import describe, top_suspects
from bif.kernel.layout import layout, layout_stability
from bif.kernel.linear_part import LinearShare, linear_kernel, linear_share
from bif.kernel.mapping import item_map, map_series
from bif.kernel.similarities import (
    activation_kernel,
    ball_kernel,
    gradient_kernel,
    input_kernel,
    label_kernel,
    picture_kernel,
)
from bif.kernel.squared import SquaredKernel, squared_kernel
from bif.report.map_source import ItemMap
from bif.runs.loss_kernel import loss_kernel, pictures_of

__all__ = [
    "Agreement",
    "AgreementDifference",
    "AgreementFigure",
    "ClassTree",
    "CleanedKernel",
    "Clusters",
    "FeatureKernel",
    "ItemKernel",
    "ItemMap",
    "LinearShare",
    "LossKernel",
    "Neighbours",
    "SquaredKernel",
    "Stability",
    "TokenOverlap",
    "activation_kernel",
    "agreement",
    "agreement_difference",
    "ball_kernel",
    "class_linkage",
    "cleaned",
    "clusters",
    "describe",
    "find_neighbours",
    "gradient_kernel",
    "input_kernel",
    "item_map",
    "label_kernel",
    "layout",
    "layout_stability",
    "linear_cka",
    "linear_kernel",
    "linear_share",
    "loss_kernel",
    "map_series",
    "neighbour_stability",
    "picture_kernel",
    "pictures_of",
    "read_tree",
    "recall",
    "shared_neighbours",
    "squared_kernel",
    "suspects",
    "top_suspects",
    "tree_of",
]
