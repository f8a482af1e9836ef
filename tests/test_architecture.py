"""Who may import whom, who may touch what, and which names are public.

A change to a table in this file is a change to the architecture: say so in the commit.
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bif"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each room may know of the package. A room is a module or a folder of src/bif; it always knows
# itself. None: everything but the composers.
MAY_KNOW: dict[str, set[str] | None] = {
    "types": set(),
    # The arithmetic.
    "tensors": {"types"},
    "rng": {"types"},
    "posterior": {"types", "tensors"},
    "samplers": {"types", "tensors", "rng", "posterior"},
    # What a user hands over.
    "literals": set(),
    "weights": set(),
    "unpacked": set(),
    "positions": set(),
    "losses": {"types", "positions", "unpacked"},
    "handed": {"types"},
    "items": {"types", "handed", "weights"},
    "columns": {"types", "items"},
    "proxy": {"types", "losses"},
    "probe": {"types", "items", "losses", "columns", "proxy"},
    "problem": {
        "types",
        "literals",
        "items",
        "losses",
        "columns",
        "probe",
        "proxy",
        "weights",
    },
    "settings": {"types", "literals", "precision"},
    "panels": {"items", "columns", "problem"},
    "provenance": {"types", "items"},
    "code": {"provenance"},
    # Gradients and losses of a model; neither priors nor noise.
    "compiling": set(),
    "activations": set(),
    "peak": set(),
    "rounding": set(),
    "precision": set(),
    "functional": {"types", "losses"},
    "replay": {"types", "items", "compiling"},
    "oracles": {
        "types",
        "tensors",
        "items",
        "functional",
        "compiling",
        "precision",
        "replay",
        "weights",
    },
    "gradients": {"types", "tensors", "items", "oracles", "rng"},
    "curvature": {"types", "tensors", "items", "oracles", "gradients", "rng"},
    # Steps into draws, draws into traces, traces into scores.
    "chains": {"types", "posterior", "compiling", "precision"},
    "careful_walk": {"types", "tensors", "posterior", "chains", "samplers"},
    "fused": {"types", "rng", "posterior", "items", "oracles", "chains", "rounding"},
    "observe": {"types", "items", "oracles"},
    "tokens": {"types", "items", "columns", "oracles"},
    "linearised": {"types", "items", "losses", "oracles", "proxy", "tokens"},
    "traces": {"types"},
    "record": {"types", "traces", "estimate"},
    "estimate": {"types", "traces"},
    "evaluate": {"types", "items", "functional", "precision", "weights"},
    "store": set(),
    "ranking": set(),
    "grouping": {"traces", "estimate"},
    "influence": {"columns", "traces", "estimate", "grouping", "ranking", "store"},
    "strongest": {"columns", "traces", "estimate", "grouping", "ranking", "influence", "keep"},
    "manifest": {"code", "problem", "settings", "provenance"},
    "checkpoint": set(),
    "interrupts": set(),
    "writer": set(),
    "report": set(),
    "progress": set(),
    "baselines": {"types", "items", "losses", "functional", "problem", "posterior"},
    "language": {
        "types",
        "literals",
        "items",
        "columns",
        "losses",
        "positions",
        "problem",
        "unpacked",
        "weights",
    },
    # Put together from everything above.
    "moving": {"posterior", "problem", "settings", "weights"},
    "assemble": {
        "types",
        "moving",
        "weights",
        "activations",
        "compiling",
        "oracles",
        "posterior",
        "problem",
        "samplers",
        "settings",
    },
    "budget": {"assemble", "estimate", "problem", "sampling", "settings", "traces"},
    "alignment": {"types", "items", "oracles"},
    "temperature": {
        "types",
        "tensors",
        "items",
        "losses",
        "oracles",
        "gradients",
        "posterior",
        "problem",
        "settings",
        "assemble",
    },
    "identities": {"types", "tensors", "posterior"},
    "damping": {"types", "tensors", "curvature", "posterior"},
    "pilot": {
        "posterior",
        "alignment",
        "types",
        "tensors",
        "rng",
        "items",
        "gradients",
        "curvature",
        "damping",
        "careful_walk",
        "problem",
        "settings",
        "assemble",
    },
    "mass": {
        "types",
        "tensors",
        "rng",
        "items",
        "posterior",
        "gradients",
        "curvature",
        "careful_walk",
        "problem",
        "settings",
        "assemble",
    },
    "steps": {"damping", "problem", "samplers", "settings"},
    "remedies": {"settings", "steps"},
    "minibatches": {
        "types",
        "tensors",
        "budget",
        "checks",
        "gates",
        "problem",
        "sampling",
        "settings",
        "steps",
    },
    "first_look": {
        "types",
        "tensors",
        "items",
        "losses",
        "functional",
        "precision",
        "oracles",
        "problem",
        "settings",
        "moving",
        "assemble",
    },
    "oracle_race": {"tensors", "items", "gradients", "problem", "settings", "assemble"},
    "calibrate": None,
    "tune": None,
    "sampling": {
        "mass",
        "types",
        "tensors",
        "rng",
        "items",
        "linearised",
        "oracles",
        "gradients",
        "compiling",
        "observe",
        "tokens",
        "chains",
        "fused",
        "rounding",
        "checkpoint",
        "panels",
        "problem",
        "settings",
        "assemble",
    },
    "described": {"items", "columns", "sampling"},
    "checks": {
        "mass",
        "types",
        "tensors",
        "rng",
        "items",
        "oracles",
        "gradients",
        "curvature",
        "sampling",
        "settings",
        "temperature",
    },
    "plan": {
        "assemble",
        "calibrate",
        "fused",
        "items",
        "keep",
        "moving",
        "weights",
        "oracles",
        "peak",
        "problem",
        "sampling",
        "settings",
    },
    "controls": {
        "tensors",
        "rng",
        "oracles",
        "traces",
        "estimate",
        "baselines",
        "sampling",
    },
    "gates": {"estimate", "checks", "remedies"},
    "keep": {"estimate", "panels", "posterior", "problem", "record", "settings"},
    "backfill": {"types", "sampling", "store"},
    "recording": {
        "types",
        "budget",
        "chains",
        "checks",
        "checkpoint",
        "estimate",
        "identities",
        "traces",
        "record",
        "panels",
        "sampling",
        "backfill",
        "keep",
        "interrupts",
        "progress",
        "provenance",
        "store",
        "writer",
    },
    "resumption": {"precision", "provenance", "sampling", "settings", "store"},
    "run": {
        "estimate",
        "grouping",
        "influence",
        "keep",
        "panels",
        "ranking",
        "report",
        "store",
        "strongest",
        "traces",
    },
    "judgement": {"estimate", "checks", "gates", "remedies", "traces"},
    "conclude": {
        "estimate",
        "problem",
        "settings",
        "panels",
        "provenance",
        "manifest",
        "calibrate",
        "controls",
        "described",
        "judgement",
        "keep",
        "pilot",
        "recording",
        "remedies",
        "run",
        "store",
        "strongest",
        "traces",
    },
    "merge": {"judgement", "estimate", "run", "store", "strongest", "traces"},
    "attribute": None,
    # Judged by networks that were retrained.
    "bank": {
        "types",
        "code",
        "weights",
        "items",
        "functional",
        "problem",
        "provenance",
        "evaluate",
        "interrupts",
        "store",
    },
    "interop": {
        "types",
        "items",
        "losses",
        "problem",
        "settings",
        "store",
        "calibrate",
        "attribute",
    },
}
COMPOSERS = {
    "attribute",
    "response",
    "growth",
    "crosscheck",
    "benchmark",
    "cli",
    "demo",
    "__init__",
    "__main__",
}

PUBLIC = {
    "bif": """
        MARGIN Calibration CrossChecks Influence Items LocalPosterior LossTraces Observable
        Problem Proxy Ranking Response Run Score Settings Tuned attribute calibrate cross_check
        estimate evaluate extend known_proxy load losses merge respond response run_chains samplers
        tune
    """,
    "bif.samplers": """
        BAOAB SGLD SGNHT BAOABState RMSpropSGLD RMSpropSGLDState SGLDState SGNHTState
    """,
    "bif.evaluate": """
        Brittleness Curve Estimate LDSResult LeaveOneOut PairedDifference Recipe RemovalCurve
        RemovalMasks Tracing auroc brittleness compare lds leave_one_out_correlation leave_out
        noise_ceiling paired_difference paired_differences predict random_subsets removal_curve
        removal_masks retrain tracing train
    """,
    "bif.report": "render_report render_token_report",
    "bif.response": "Choice Cost Response choose_estimator measure_costs respond",
    "bif.baselines": """
        EKFAC TRAK ConjugateGradients ExactInfluence cg_influence ekfac_influence exact_influence
        gradient_cosine gradient_product item_gradients random_scores representation_similarity
        trak
    """,
    "bif.bank": "Bank BankPart Plan Purpose Target TrainFunction load retrained",
    "bif.benchmark": """
        RESIDUAL SETTINGS Proxy Results Task benchmark benchmark_sizes judge_file named_task
    """,
    "bif.language": """
        Document Head LanguageModel Sequences label_cross_entropy language_problem load_model
        masked_token movable_weights read_documents
    """,
    "bif.interop": """
        ImportedScores read_bergson_scores read_kronfluence_scores read_scores
        write_bergson_scores
    """,
}

HEAVY = """
    arviz_stats curvlinops datasets matplotlib peft PIL pyarrow quanda rich scipy sklearn
    torchvision transformers tyro umap xarray zarr
""".split()

# Methods and functions that write, whatever they are called on; savers only on these modules.
WRITERS = """
    mkdir mkdtemp open rename rmtree symlink_to to_csv to_json to_netcdf to_zarr touch unlink
    write_bytes write_text
""".split()
SAVERS = """
    np.save np.savez np.savez_compressed numpy.save numpy.savez numpy.savez_compressed torch.save
""".split()


@dataclass(frozen=True)
class Name:
    """A module or attribute, by its full dotted name, and the line that names it."""

    name: str
    line: int
    at_import: bool


def names(source: str) -> list[Name]:
    """Every import, and every attribute reached from an imported name, by full dotted name."""
    tree = ast.parse(source)
    lazy = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)
        and (not isinstance(outer, ast.If) or "TYPE_CHECKING" in ast.unparse(outer.test))
        for node in ast.walk(outer)
    }
    bound: dict[str, str] = {}
    found: list[Name] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Name(alias.name, node.lineno, id(node) not in lazy))
                target = alias.name if alias.asname else alias.name.split(".")[0]
                bound[alias.asname or target] = target
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append(Name(full, node.lineno, id(node) not in lazy))
                bound[alias.asname or alias.name] = full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            if head in bound:
                found.append(Name(f"{bound[head]}.{rest}", node.lineno, False))
    return found


def is_within(name: str, *modules: str) -> bool:
    """Whether a dotted name is one of the modules or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def strangers(source: str, room: str) -> list[str]:
    """Rooms that a file of `room` knows and may not."""
    allowed = MAY_KNOW[room]
    if allowed is None:
        allowed = MAY_KNOW.keys() - COMPOSERS
    known = {n.name.split(".")[1] for n in names(source) if n.name.startswith("bif.")}
    return sorted(known - allowed - {room, "__version__"})


def uses(source: str, *modules: str) -> list[str]:
    """Names within any of the modules that a file imports or reaches."""
    return sorted({n.name for n in names(source) if is_within(n.name, *modules)})


def imports_at_import(source: str) -> list[str]:
    """Packages that importing a file imports, without bif, torch, numpy and Python's own."""
    packages = {n.name.split(".")[0] for n in names(source) if n.at_import}
    return sorted(packages - {"bif", "torch", "numpy"} - sys.stdlib_module_names)


def written_files(source: str) -> list[str]:
    """Calls that write, rename or remove files."""

    found = []
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call):
            whole = ast.unparse(call.func)
            if whole.rpartition(".")[2] in WRITERS or whole in SAVERS:
                found.append(f"line {call.lineno}: {whole}")
    return found


def room_of(file: Path) -> str:
    """The room of a file of the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def text(file: Path) -> str:
    """A file's source."""
    return file.read_text(encoding="utf-8")


def files_of(*rooms: str) -> list[Path]:
    """The files of some rooms."""
    return [file for file in FILES if room_of(file) in rooms]


each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))


def test_every_room_is_in_the_table():
    assert {room_of(file) for file in FILES} - COMPOSERS <= MAY_KNOW.keys()


@pytest.mark.parametrize("file", files_of(*MAY_KNOW), ids=lambda f: f"{f.parent.name}/{f.name}")
def test_a_room_knows_only_rooms_it_may_know(file: Path):
    assert strangers(text(file), room_of(file)) == []


@each_file
def test_files_import_only_torch_numpy_and_the_standard_library_at_import(file: Path):
    # The command line's types are written in tyro's words, and nothing else imports it.
    allowed = {"tyro"} if room_of(file) == "cli" else set()
    # Its kernels are written in triton, which torch brings along; it is imported on GPUs alone.
    allowed |= {"triton"} if file.name == "row_kernels.py" else set()
    assert set(imports_at_import(text(file))) <= allowed


@pytest.mark.parametrize("file", files_of("samplers"), ids=lambda f: f.name)
def test_samplers_know_no_modules_no_function_transforms_and_no_process_groups(file: Path):
    assert uses(text(file), "torch.nn", "torch.func", "torch.distributed") == []


@pytest.mark.parametrize("file", files_of("oracles", "gradients"), ids=lambda f: f.name)
def test_oracles_and_gradients_know_neither_priors_nor_noise(file: Path):
    assert uses(text(file), "bif.posterior", "bif.rng.BlockNoise", "bif.types.Noise") == []


@pytest.mark.parametrize(
    "file", files_of("estimate", "evaluate", "kernels"), ids=lambda f: f"{f.parent.name}/{f.name}"
)
def test_estimates_and_evaluation_touch_neither_disk_nor_process_groups(file: Path):
    disk = uses(text(file), "pathlib", "tempfile", "shutil", "bif.store", "torch.load")
    assert disk + uses(text(file), "torch.distributed") == []


@each_file
def test_only_tensors_uses_multi_tensor_kernels(file: Path):
    if file.name != "tensors.py":
        assert [n for n in uses(text(file), "torch") if n.startswith("torch._foreach")] == []


@each_file
def test_only_distributed_uses_process_groups(file: Path):
    if file.name != "distributed.py":
        assert uses(text(file), "torch.distributed") == []


@each_file
def test_only_store_writes_files(file: Path):
    if room_of(file) != "store":
        assert written_files(text(file)) == []


BROKEN = {
    "a sampler that imports an oracle": lambda: strangers("from bif import oracles", "samplers"),
    "an oracle that imports the posterior": lambda: strangers(
        "from bif.posterior import LocalPosterior", "oracles"
    ),
    "evaluation that imports the store": lambda: strangers("import bif.store", "evaluate"),
    "calibration that imports the composer": lambda: strangers(
        "from bif.attribute import Run", "calibrate"
    ),
    "evaluation that imports a public name": lambda: strangers("from bif import Run", "evaluate"),
    "a sampler that reaches for torch.nn": lambda: uses(
        "import torch\nx = torch.nn.Linear", "torch.nn"
    ),
    "a sampler that renames torch.func": lambda: uses("from torch import func as f", "torch.func"),
    "a multi-tensor kernel": lambda: uses(
        "import torch as t\nt._foreach_add_([], 1)", "torch._foreach_add_"
    ),
    "xarray at import": lambda: imports_at_import("import xarray as xr"),
    "scipy at import in a class": lambda: imports_at_import("class A:\n    import scipy.stats"),
    "a file opened": lambda: written_files("open('x', 'w')"),
    "a path written": lambda: written_files("Path('x').write_text('')"),
    "weights saved": lambda: written_files("torch.save({}, 'x')"),
}


@pytest.mark.parametrize("found", BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_noticed(found: Callable[[], list[str]]):
    assert found()


def test_the_rules_allow_imports_where_used_and_for_types():
    used = "def f():\n    import xarray\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import xarray\n"
    assert imports_at_import(used) == imports_at_import(typed) == []


def test_importing_bif_imports_nothing_heavy():
    script = f"import sys, bif; print(*[m for m in {HEAVY} if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_frozen(module: str):
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module].split())
