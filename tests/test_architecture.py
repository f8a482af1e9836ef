"""Who may import whom, who may touch what, and which names are public.

A change to a table in this file is a change to the architecture: say so in the commit.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import pytest

from bif.sampling.samplers import SAMPLERS

PACKAGE = Path(__file__).parents[1] / "src" / "bif"
FILES = sorted(PACKAGE.rglob("*.py"))

# Files beside the rooms that every room may import.
LEAVES = {"types": "", "terminal": "", "extras": "", "tensors": "types"}
# Which rooms each room may import; a room is a folder of src/bif.
MAY_IMPORT = {
    **LEAVES,
    "store": "",
    "mesh": "",
    "report": "",
    "estimate": "",
    "problem": "",
    "curvature": "problem",
    "sampling": "problem curvature",
    "linear_response": "problem sampling curvature estimate",
    "results": "problem estimate store",
    "evaluate": "problem sampling estimate store",
    "calibration": "problem sampling curvature estimate linear_response evaluate",
    "runs": """
        problem sampling curvature estimate linear_response results store calibration report mesh
    """,
    "baselines": "problem sampling curvature",
    "language": "problem",
    "stages": """
        problem sampling curvature estimate linear_response results store calibration runs baselines
        report
    """,
    "kernel": "problem sampling curvature baselines results estimate store runs stages report",
    "susceptibility": "problem sampling estimate results runs",
    "interop": "problem sampling estimate results store calibration runs",
    "benchmark": """
        problem sampling curvature estimate linear_response results store evaluate calibration runs
        baselines language interop
    """,
    "cli": """
        problem sampling curvature estimate linear_response results store evaluate calibration runs
        baselines language interop benchmark report stages kernel susceptibility mesh
    """,
}
# Not rooms: the package itself, and public names of what lies elsewhere.
DOORS = {"__init__", "__main__", "bank", "losses", "response", "samplers"}

PUBLIC = {
    "bif": """
        MARGIN Calibration CheckpointSeries CrossChecks Influence Items LocalPosterior LossKernel
        LossTraces Observable Problem Proxy Ranking Response Run SaveCheckpoints Score Settings
        Trajectory Tuned adam_metric at_draws attribute average average_over_draws baselines
        calibrate cross_check estimate evaluate extend gradient_metric known_proxy load
        log_spaced_steps loss_kernel losses merge respond response run_chains samplers
        stream_covariance trajectory tune
    """,
    "bif.samplers": """
        BAOAB SGLD SGNHT BAOABState RMSpropSGLD RMSpropSGLDState SGLDState SGNHTState
    """,
    "bif.evaluate": """
        Brittleness Curve Estimate LDSResult LeaveOneOut PairedDifference Recipe RemovalCurve
        RemovalMasks Tracing auroc brittleness compare lds leave_one_out_correlation leave_out
        noise_ceiling predict random_subsets removal_curve removal_masks retrain
        retrain_weighted tracing train train_with_checkpoints
    """,
    "bif.report": "render_report render_token_report",
    "bif.response": "Choice Cost Response choose_estimator measure_costs respond",
    "bif.baselines": """
        EKFAC TRAK Checkpoint ConjugateGradients EmpiricalFisher ExactInfluence Source TracIn
        gradient_cosine gradient_product item_gradients random_scores representation_similarity
    """,
    "bif.bank": "Bank BankPart Plan Purpose Target TrainFunction load retrained",
    "bif.benchmark": """
        RESIDUAL SETTINGS Proxy Results Task benchmark benchmark_sizes judge_file named_task
    """,
    "bif.language": """
        Document Head LanguageModel Sequences label_cross_entropy language_problem load_model
        masked_token movable_weights read_documents revisions
    """,
    "bif.mesh": "RankFailed Ranks join launched",
    "bif.interop": """
        ImportedScores read_bergson_scores read_devinterp_run read_kronfluence_scores read_scores
        write_bergson_scores
    """,
}

HEAVY = """
    arviz_stats curvlinops datasets matplotlib networkx peft PIL pyarrow quanda rich scipy sklearn
    sympy torch._dynamo torchvision transformers tyro umap xarray zarr
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


def module_of(name: str) -> str:
    """The module of the package that a dotted name lies in, without `bif.`."""
    parts = name.split(".")[1:]
    known = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((module for module in known if module in MODULES), parts[0])


def climbs_of(source: str, module: str) -> list[str]:
    """Imports of a module's source from rooms that its own may not import: `module -> other`."""
    allowed = {
        module.partition(".")[0],
        "__version__",
        *LEAVES,
        *MAY_IMPORT[module.partition(".")[0]].split(),
    }
    others = {module_of(n.name) for n in names(source) if n.name.startswith("bif.")}
    return [f"{module} -> {o}" for o in sorted(others) if o.partition(".")[0] not in allowed]


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


def compared_samplers(source: str) -> list[str]:
    """Comparisons with a sampler's name, or with the start of one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        start = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".startswith")
        if isinstance(node, ast.Compare) or start:
            words = [str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)]
            starts = [w for w in words for s in SAMPLERS if start and w[2:] and s.startswith(w)]
            if starts or {*words} & SAMPLERS.keys():
                found.append(ast.unparse(node))
    return found


def room_of(file: Path) -> str:
    """The room of a file of the package."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(file: Path) -> str:
    """The name of a file's module, without `bif.`."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(file) for file in FILES}


@cache
def text(file: Path) -> str:
    """A file's source."""
    return file.read_text(encoding="utf-8")


def files_of(*places: str) -> list[Path]:
    """The files of some folders or modules."""
    paths = {file: file.relative_to(PACKAGE).with_suffix("") for file in FILES}
    return [f for f, path in paths.items() if any(map(path.is_relative_to, map(PurePath, places)))]


each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))


def test_no_two_test_files_have_one_name():
    """Pytest imports them by name, and runs none of the second."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_room_is_in_the_table():
    assert {room_of(file) for file in FILES} - DOORS == MAY_IMPORT.keys()


def test_no_room_imports_itself_through_others():
    graphlib.TopologicalSorter({r: below.split() for r, below in MAY_IMPORT.items()}).prepare()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_that_it_may(room: str):
    assert [edge for file in files_of(room) for edge in climbs_of(text(file), dotted(file))] == []


@each_file
def test_files_import_only_torch_numpy_and_the_standard_library_at_import(file: Path):
    # The command line's types are written in tyro's words, and nothing else imports it.
    allowed = {"tyro"} if room_of(file) == "cli" else set()
    # Its kernels are written in triton, which torch brings along; it is imported on GPUs alone.
    allowed |= {"triton"} if file.name == "row_kernels.py" else set()
    assert set(imports_at_import(text(file))) <= allowed


@pytest.mark.parametrize("file", files_of("sampling/samplers"), ids=lambda f: f.name)
def test_samplers_know_no_modules_no_function_transforms_and_no_process_groups(file: Path):
    assert uses(text(file), "torch.nn", "torch.func", "torch.distributed") == []


@pytest.mark.parametrize(
    "file", files_of("sampling/oracles", "sampling/gradients"), ids=lambda f: f.name
)
def test_oracles_and_gradients_know_neither_priors_nor_noise(file: Path):
    assert (
        uses(text(file), "bif.sampling.posterior", "bif.sampling.rng.BlockNoise", "bif.types.Noise")
        == []
    )


@pytest.mark.parametrize(
    "file",
    [f for f in files_of("estimate", "evaluate") if "retraining" not in f.parts],
    ids=lambda f: f"{f.parent.name}/{f.name}",
)
def test_estimates_and_evaluation_touch_neither_disk_nor_process_groups(file: Path):
    disk = uses(text(file), "pathlib", "tempfile", "shutil", "bif.store", "torch.load")
    assert disk + uses(text(file), "torch.distributed") == []


@each_file
def test_only_tensors_uses_multi_tensor_kernels(file: Path):
    if file.name != "tensors.py":
        assert [n for n in uses(text(file), "torch") if n.startswith("torch._foreach")] == []


@each_file
def test_only_mesh_uses_process_groups(file: Path):
    if room_of(file) != "mesh":
        assert uses(text(file), "torch.distributed") == []


@each_file
def test_only_store_writes_files(file: Path):
    if room_of(file) != "store":
        assert written_files(text(file)) == []


@each_file
def test_no_file_outside_the_samplers_compares_with_a_samplers_name(file: Path):
    assert compared_samplers(text(file)) == []


BROKEN = {
    "a sampler that imports the composer": lambda: climbs_of(
        "from bif.runs import attribute", "sampling.samplers.sgld"
    ),
    "evaluation that imports results": lambda: climbs_of(
        "import bif.results.influence", "evaluate.lds"
    ),
    "calibration that imports a run": lambda: climbs_of(
        "from bif.runs.run import Run", "calibration.calibrate"
    ),
    "evaluation that imports a public name": lambda: climbs_of("from bif import Run", "evaluate"),
    "an oracle that imports the posterior": lambda: uses(
        "from bif.sampling.posterior import LocalPosterior", "bif.sampling.posterior"
    ),
    "a sampler that reaches for torch.nn": lambda: uses(
        "import torch\nx = torch.nn.Linear", "torch.nn"
    ),
    "a sampler that renames torch.func": lambda: uses("from torch import func as f", "torch.func"),
    "a multi-tensor kernel": lambda: uses(
        "import torch as t\nt._foreach_add_([], 1)", "torch._foreach_add_"
    ),
    "xarray at import": lambda: imports_at_import("import xarray as xr"),
    "scipy at import in a class": lambda: imports_at_import("class A:\n    import scipy.stats"),
    "a sampler's name compared": lambda: compared_samplers("s.sampler in ('sgld', 'baoab')"),
    "the start of a sampler's name": lambda: compared_samplers("s.sampler.startswith('rmsprop')"),
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


def test_dir_of_the_package_shows_its_public_names():
    assert dir(importlib.import_module("bif")) == sorted(PUBLIC["bif"].split())
