"""Scores of the studies' files, on any machine with networkx and cleanlab."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import mean_interval, print_table, write_json
from benchmarks.kernel import backdoor, checkpoints, images, mislabel
from benchmarks.kernel.item_scores import detection
from benchmarks.kernel.plan import Plan
from benchmarks.kernel.stored import Bundle, StoredKernel, read, stored
from benchmarks.kernel.trees import TREES, class_tree
from bif.kernel import (
    Agreement,
    AgreementDifference,
    FeatureKernel,
    agreement,
    agreement_difference,
    label_kernel,
)

PERMUTATIONS, RESAMPLES = 1000, 500
_COMPARED = ("rank_correlation", "triplet_accuracy", "item_rank_correlation",
             "item_triplet_accuracy", "cophenetic_correlation")  # fmt: skip


def score(traces: Path, arguments: argparse.Namespace) -> None:
    """Write `kernel-STUDY-DATE.json` for every study's file in a folder."""
    for path in sorted(traces.glob("*.npz")):
        bundle = read(path)
        study = bundle.about["study"]
        if study in ("fashion", "cifar"):
            rows, further = hierarchy(bundle, arguments.data)
        elif study == "checkpoints":
            curves, halves = checkpoints.summary(bundle)
            rows = _over_seeds(halves, ("kernel", "level"), "half_way")
            further = {"curves": curves}
        else:
            rows, further = found_items(bundle)
        name = "-".join(["kernel", study, *([arguments.suffix] if arguments.suffix else [])])
        content = {
            "benchmark": name, "seed": 0, **bundle.about, **further,
            "runs": bundle.rows, "rows": rows,
        }  # fmt: skip
        date = bundle.about["date"]
        print(f"\n{study}")
        print_table(rows)
        print(write_json(arguments.out / f"{name}-{date}.json", content))


# --- Agreement with a tree ------------------------------------------------------------------------


def hierarchy(bundle: Bundle, data: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return agreement of each kernel with the tree, beside that of the loss kernel of its seeds.

    Differences are those of the loss kernel, and of its squares, less the other one.
    """
    study = bundle.about["study"]
    tree = class_tree(study)
    rows, full = [], {}
    networks = dict.fromkeys(row["network"] for row in bundle.rows if "network" in row)
    for network in networks:
        found = kernels(bundle, data, network)
        for kind, several in found.items():
            given = {"num_permutations": PERMUTATIONS, "num_bootstrap": RESAMPLES,
                     "num_pairs": bundle.about["plan"]["pairs"]}  # fmt: skip
            one = agreement(several, tree, **given)
            full[f"{network}, {kind}"] = one.to_dict()
            row = {"network": network, "kernel": kind, **_figures(one), "seeds": len(several)}
            del given["num_permutations"]
            for prefix, base in (("less", "loss"), ("squared_less", "loss, squared")):
                if len(several) == len(found[base]) and kind != base:
                    row |= _apart(prefix, agreement_difference(found[base], several, tree, **given))
            rows.append(row)
    return rows, {"agreement": full, "tree": TREES[study], "alignment": _alignments(bundle)}


def _figures(found: Agreement) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in _COMPARED:
        figure = found.figures[name]
        row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high,
                f"{name}_p": figure.p, f"{name}_error": figure.standard_error}  # fmt: skip
    row["detectable_correlation"] = found.detectable_correlation
    return row


def _apart(prefix: str, found: dict[str, AgreementDifference]) -> dict[str, float]:
    return {
        f"{prefix}_{name}{end}": value
        for name in _COMPARED[:2]
        for end, value in (
            ("", found[name].value), ("_low", found[name].low), ("_high", found[name].high)
        )
    }  # fmt: skip


def kernels(bundle: Bundle, data: Path, network: str) -> dict[str, list[StoredKernel]]:
    """Return the kernels of a network's seeds, by kind, with those of pixels and labels."""
    plan = Plan(**bundle.about["plan"])
    items = items_of(bundle.about["study"], network, data, plan)
    labels = {"label": tuple(map(str, items.labels))}
    ids = tuple(items.ids.tolist())
    found: dict[str, list[StoredKernel]] = {}
    for row in bundle.rows:
        if row.get("network") == network and "failed" not in row:
            arrays = bundle.of(row["name"])
            kernel = StoredKernel(ids, labels, arrays["blocks"], arrays["codes"], arrays["values"])
            found.setdefault(row["kernel"], []).append(kernel)
    inputs = images.inputs_and_classes(items)[0].flatten(1)
    pixels = FeatureKernel(inputs - inputs.mean(dim=0), ids, labels)
    for kind, kernel in (("pixels", pixels), ("labels", label_kernel(pixels))):
        once = StoredKernel(ids, labels, **stored(kernel, pairs=plan.pairs))
        found[kind] = [once] * len(found["loss"])
    return found


def items_of(study: images.DataSet, network: str, data: Path, plan: Plan) -> Any:
    """Return the items of a study's kernels."""
    if network == "ResNet-20":
        return images.published(data, plan.train, "cpu")[1]
    train, others = images.read(data, study, plan.train, plan.items, "cpu")
    return train if others is None else others


def _alignments(bundle: Bundle) -> list[dict[str, Any]]:
    rows = [
        {"network": row["network"], "with": name, "alignment": value}
        for row in bundle.rows
        for name, value in row.get("alignment", {}).items()
    ]
    return _over_seeds(rows, ("network", "with"), "alignment")


# --- Items that are found -------------------------------------------------------------------------


def found_items(bundle: Bundle) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return how well each score finds the items, over seeds, and what the study is of."""
    backdoors = bundle.about["study"].startswith("backdoor")
    rows: list[dict[str, Any]] = []
    for run in bundle.rows:
        share = {} if backdoors else {"share": run["share"]}
        parts = {"all": run["detection"]}
        if backdoors:
            parts["same label"] = run["detection_within_label"]
        else:
            parts["all"] = {**run["detection"], **_by_cleanlab(bundle.of(run["name"]))}
        for among, by in parts.items():
            rows += [{**share, "among": among, "score": name, **d} for name, d in by.items()]
    keys = ("among", "score") if backdoors else ("share", "score")
    about = (backdoor if backdoors else mislabel).__doc__ or ""
    return _joined(_over_seeds(rows, keys, "auroc"), _over_seeds(rows, keys, "found")), {
        "about": about
    }


def _by_cleanlab(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return how well label quality finds the items, by probabilities of either kind."""
    from cleanlab.rank import get_label_quality_scores

    found = {}
    for kind, key in (("in-sample", "probabilities"), ("held out", "probabilities held out")):
        for method in ("self_confidence", "normalized_margin"):
            quality = get_label_quality_scores(
                arrays["classes"], arrays[key].astype(float), method=method
            )
            found[f"cleanlab, {method}, {kind}"] = detection(-quality, arrays["flipped"])
    return found


def _over_seeds(
    rows: Iterable[dict[str, Any]], keys: Sequence[str], value: str
) -> list[dict[str, Any]]:
    """Return the mean of a value and its interval over rows that have the same keys."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row[value])
    found = []
    for names, values in groups.items():
        about = mean_interval(values)
        found.append({
            **dict(zip(keys, names, strict=True)), value: about["mean"],
            f"{value}_low": about["ci_low"], f"{value}_high": about["ci_high"],
            "seeds": about["seeds"],
        })  # fmt: skip
    return found


def _joined(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**a, **b} for a, b in zip(first, second, strict=True)]
