"""The documentation: links resolve, names exist, examples run, nothing public is undocumented."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import bif
from bif.samplers import SGLD
from bif.sampling.rng import BlockNoise
from bif.types import Params, Sampler

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(bif.__path__, "bif.")
    if not module.name.endswith("__main__")
)

# Optional packages that a module may miss, by the extra that brings them.
OPTIONAL = {
    "curvlinops",
    "sklearn",
    "matplotlib",
    "PIL",
    "transformers",
    "datasets",
    "peft",
    "umap",
    "triton",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
each_module = pytest.mark.parametrize("name", MODULES)


def outside_code(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and code forges make them."""
    headings = re.findall(r"^#+ +(.*)$", outside_code(page), flags=re.MULTILINE)
    plain = (re.sub(r"[`*_]|\[|\]\(.*?\)", "", heading) for heading in headings)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in plain}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", outside_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def resolve(dotted: str) -> object:
    """The object of a dotted name; a module goes before a function of the same name."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:depth]))
        except ModuleNotFoundError as error:
            if not dotted.startswith(error.name or "?"):
                raise
            continue
        for name in parts[depth:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(dotted)


def unknown_names(page: Path) -> list[str]:
    """Names `bif.….…` in a page that do not exist."""
    unknown = []
    for dotted in sorted(set(re.findall(r"\bbif(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8")))):
        try:
            resolve(dotted)
        except (ImportError, AttributeError):
            unknown.append(dotted)
    return unknown


def missing_files(page: Path) -> list[str]:
    """Files of the project that a page speaks of and that are not there."""
    pattern = r"\b(?:tests|benchmarks|templates|docs|src/bif)/[\w./-]*\w"
    spoken_of = set(re.findall(pattern, page.read_text("utf-8")))
    return sorted(path for path in spoken_of if not (ROOT / path).exists())


def unknown_benchmarks(page: Path) -> list[str]:
    """Benchmarks that a page tells to run and that are not there."""
    told = set(re.findall(r"\bpython -m (benchmarks[\w.]*\w)", page.read_text("utf-8")))
    return sorted(name for name in told if importlib.util.find_spec(name) is None)


@each_page
def test_relative_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


@each_page
def test_every_name_of_the_package_in_a_page_exists(page: Path):
    assert unknown_names(page) == []


@each_page
def test_every_benchmark_of_a_page_exists(page: Path):
    assert unknown_benchmarks(page) == []


@each_page
def test_every_file_of_the_project_in_a_page_exists(page: Path):
    made_by_the_reader = {
        "src/bif/sampling/samplers/my_sampler.py",
        "tests/sampling/test_law_my_sampler.py",
    }
    assert set(missing_files(page)) <= made_by_the_reader


@each_page
def test_python_blocks_are_python(page: Path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        ast.parse(block)


def test_the_sampler_template_does_what_its_docstring_says():
    path = ROOT / "templates" / "sampler.py"
    specification = importlib.util.spec_from_file_location("sampler_template", path)
    assert specification is not None and specification.loader is not None
    template = importlib.util.module_from_spec(specification)
    sys.modules["sampler_template"] = template  # where dataclasses look up their annotations
    specification.loader.exec_module(template)

    def draw(sampler: Sampler[Any]) -> Params:
        noise = BlockNoise(torch.Generator().manual_seed(0))
        state = sampler.init({"w": torch.ones(3, 2, dtype=torch.float64)}, noise)
        for _ in range(5):
            state = sampler.step(state, {"w": 2 * state.params["w"]}, noise)
        return state.params

    assert torch.equal(draw(template.MySampler(0.1))["w"], draw(SGLD(0.1))["w"])


def test_broken_links_names_and_files_are_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c\n[x](page.md#a-b-c) [y](nowhere.md) [z](#nowhere) `bif.Nothing` `tests/no.py`"
    )
    assert broken_links(page) == ["nowhere.md", "#nowhere"]
    assert unknown_names(page) == ["bif.Nothing"]
    assert missing_files(page) == ["tests/no.py"]


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: `make venv` does it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [page.name for page in DOCS if page.name not in navigation] == []


def test_every_setting_in_the_glossary_or_the_pages_is_a_setting():
    named = {
        argument.split("=")[0].strip()
        for page in PAGES
        for call in re.findall(r"Settings\(([^)]*)\)", page.read_text("utf-8"))
        for argument in call.split(",")
        if "=" in argument
    }
    assert named <= set(inspect.signature(bif.Settings).parameters)


def test_every_extra_is_in_the_installation_page():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert [
        extra for extra in project["optional-dependencies"] if f"| `{extra}` |" not in page
    ] == []


def test_citation_and_package_have_the_same_version():
    assert f"version: {bif.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_every_public_module_is_in_the_reference():
    listed = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M)
    for name in listed:
        resolve(name)
    modules = [n for n, value in vars(bif).items() if n in bif.__all__ and inspect.ismodule(value)]
    assert {f"bif.{name}" for name in modules} <= set(listed)


@each_module
def test_modules_are_documented(name: str):
    assert inspect.getdoc(load(name)), f"{name} has no docstring"


@pytest.mark.parametrize("name", bif.__all__)
def test_public_names_and_their_methods_are_documented(name: str):
    value = getattr(bif, name)
    assert inspect.getdoc(value), f"bif.{name} has no docstring"
    if inspect.isclass(value):
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and isinstance(member, property | staticmethod):
                member = member.fget if isinstance(member, property) else member.__func__
            if not attribute.startswith("_") and inspect.isfunction(member):
                assert inspect.getdoc(member), f"bif.{name}.{attribute} has no docstring"


@each_module
def test_examples_in_docstrings_are_right(name: str):
    assert doctest.testmod(load(name)).failed == 0


@each_page
def test_examples_in_pages_are_right(page: Path):
    results = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert results.failed == 0


def load(name: str) -> ModuleType:
    """A module, or a skip that names the optional package it misses."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
