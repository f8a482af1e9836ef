"""The wheel: builds, installs, and brings along what it needs."""

from __future__ import annotations

import email.message
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

import bif

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bif"

# One worker builds the wheel for all of these.
pytestmark = pytest.mark.xdist_group("wheel")


def python(*arguments: str, path: Path | None = None) -> str:
    """Run Python outside the source tree and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd="/", capture_output=True, text=True
    )
    assert result.returncode == 0, f"{arguments}: {result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
           str(wheel))  # fmt: skip
    return target


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_is_called_bayesian_influence_and_has_the_version_of_the_package(wheel: Path):
    assert metadata(wheel)["Name"] == "bayesian-influence"
    assert metadata(wheel)["Version"] == bif.__version__
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if ".dist-info/" not in n}
    files = (f for f in SOURCE.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    assert packed == {f.relative_to(SOURCE.parent).as_posix() for f in files}
    assert any(n.startswith("bif/report/") and n.endswith(".html") for n in packed)


def test_extras_are_those_of_the_documentation(wheel: Path):
    extras = set(metadata(wheel).get_all("Provides-Extra") or [])
    assert extras == {"demo", "lm", "baselines", "maps", "report", "dev"}


def test_no_requirement_but_the_baselines_extra_leads_to_torchvision(wheel: Path):
    required = metadata(wheel).get_all("Requires-Dist") or []
    leading = [r for r in required if r.startswith(("torchvision", "backpack", "curvlinops"))]
    assert all(r.endswith("extra == 'baselines'") for r in leading), leading


def test_the_installed_package_is_imported_from_where_it_was_installed_with_its_templates(
    installed: Path,
):
    script = (
        "import bif; from importlib.resources import files; print(bif.__file__, bif.__version__, "
        "*(f.name for f in files('bif.report').iterdir() if f.is_file()))"
    )
    place, version, *names = python("-c", script, path=installed).split()
    assert (place, version) == (str(installed / "bif" / "__init__.py"), bif.__version__)
    assert {f.name for f in (SOURCE / "report").iterdir() if f.is_file()} == set(names)


def test_the_installed_command_prints_its_help(installed: Path):
    printed = python(str(installed / "bin" / "bif"), "--help", path=installed)
    assert [c for c in ("demo", "attribute", "show") if c not in printed] == []


def test_bif_curvlinops_and_transformers_import_together_without_torchvision():
    pytest.importorskip("curvlinops", reason="curvlinops is not installed: `make venv` does it")
    pytest.importorskip("transformers", reason="transformers is not installed: `make venv` does it")
    # Naming a model makes transformers import its code, where a torchvision that does not fit
    # torch shows.
    script = (
        "import sys, bif, curvlinops, transformers; transformers.GPTNeoXForCausalLM;"
        "print('torchvision' in sys.modules)"
    )
    assert python("-c", script, path=ROOT / "src").split()[-1] == "False"


def test_constraints_pin_every_direct_dependency_of_the_environment_and_nothing_twice():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line is NAME==VERSION"
    pinned = [name.lower().replace("_", "-") for name, _ in pins]
    assert len(set(pinned)) == len(pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["demo"], *extras["report"]]
    names = {w.split(">")[0].split("[")[0].lower().replace("_", "-") for w in wanted}
    assert names <= set(pinned)


def test_what_the_makefile_installs_for_curvlinops_is_what_it_asks_for_without_backpack():
    pytest.importorskip("curvlinops", reason="curvlinops is not installed: `make venv` does it")
    asked = {
        r.split(";")[0].split(">")[0].strip().lower().replace("_", "-")
        for r in requires("curvlinops-for-pytorch") or []
        if "extra ==" not in r
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {w.split(">")[0].split("[")[0].lower().replace("_", "-") for w in listed}
    assert asked - {"backpack-for-pytorch"} <= names
