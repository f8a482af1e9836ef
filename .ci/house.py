"""Count what makes the house hard to find one's way in.

    python .ci/house.py [ROOT ...]

Of each root, a checkout of this repository, one column.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FUNCTION_LINES, CLASS_METHODS = 60, 15


def main() -> None:
    """Print the counts, one a line."""
    roots = [Path(root) for root in sys.argv[1:] or ["."]]
    for name, count in COUNTS.items():
        print(f"{name:45}", *(f"{count(root):>8}" for root in roots))


def entries(root: Path) -> int:
    """Return the number of modules and packages that lie directly in the package."""
    return len([entry for entry in (root / "src/bif").iterdir() if _is_code(entry)])


def rooms(root: Path) -> set[str]:
    """Return the names of the packages in the package."""
    return {entry.name for entry in (root / "src/bif").iterdir() if entry.is_dir()}


def imports_between_rooms(root: Path) -> int:
    """Return the number of imports of a module from another folder or module of the package."""
    return sum(len(imported - {here}) for here, imported in _imports(root))


def pairs_of_rooms(root: Path) -> int:
    """Return the number of ordered pairs of rooms of which one imports the other."""
    return len({(here, other) for here, found in _imports(root) for other in found - {here}})


def climbs(root: Path) -> int:
    """Return how many of these pairs a topological order of the rooms must run against, at least.

    A pair counts if the rooms import each other, directly or through others.
    """
    reached: dict[str, set[str]] = {}
    for here, found in _imports(root):
        reached.setdefault(here, set()).update(found - {here})
    whole = {room: _closure(room, reached) for room in reached}
    return sum(room in whole.get(other, ()) for room in reached for other in reached[room])


def long_functions(root: Path) -> int:
    """Return the number of functions of more than 60 lines of code; a docstring is none."""
    return sum(_length(node) > FUNCTION_LINES for node in _nodes(root, ast.FunctionDef))


def large_classes(root: Path) -> int:
    """Return the number of classes of more than 15 methods."""
    classes = _nodes(root, ast.ClassDef)
    return sum(
        sum(isinstance(part, ast.FunctionDef) for part in node.body) > CLASS_METHODS
        for node in classes
    )


def asserted_settings(root: Path) -> int:
    """Return the number of times that code asserts that something is not None."""
    return sum(ast.unparse(node.test).count("is not None") for node in _nodes(root, ast.Assert))


def engines(root: Path) -> int:
    """Return the number of places that build the engine."""
    built = ("Sampling", "Engine")
    return sum(ast.unparse(node.func) in built for node in _nodes(root, ast.Call))


def lines(folder: str) -> Callable[[Path], int]:
    """Return a count of the lines of Python in a folder."""
    return lambda root: sum(
        len(file.read_text(encoding="utf-8").splitlines()) for file in (root / folder).rglob("*.py")
    )


def scripts(root: Path) -> int:
    """Return the number of files of Python among the benchmarks."""
    return len(list((root / "benchmarks").rglob("*.py")))


COUNTS: dict[str, Callable[[Path], int]] = {
    "entries in src/bif": entries,
    "imports between rooms": imports_between_rooms,
    "pairs of rooms, one importing the other": pairs_of_rooms,
    "of these, in circles": climbs,
    f"functions above {FUNCTION_LINES} lines": long_functions,
    f"classes above {CLASS_METHODS} methods": large_classes,
    "assert ... is not None": asserted_settings,
    "places that build the engine": engines,
    "lines in src": lines("src"),
    "lines in benchmarks": lines("benchmarks"),
    "lines in tests": lines("tests"),
    "scripts in benchmarks": scripts,
}


def _is_code(entry: Path) -> bool:
    return entry.suffix == ".py" or (entry.is_dir() and (entry / "__init__.py").exists())


def _imports(root: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield each module's room and the rooms that it imports."""
    package = root / "src/bif"
    for file in sorted(package.rglob("*.py")):
        here = file.relative_to(package).parts[0].removesuffix(".py")
        found = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        yield here, {name.split(".")[1] for name in found if name.startswith("bif.")}


def _closure(room: str, reached: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [room]
    while waiting:
        for other in reached.get(waiting.pop(), set()) - found:
            found.add(other)
            waiting.append(other)
    return found


def _nodes(root: Path, kind: type) -> Iterator:
    for file in (root / "src/bif").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield node


def _length(node: ast.FunctionDef) -> int:
    lines = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node) is None:
        return lines
    return lines - ((node.body[0].end_lineno or 0) - node.body[0].lineno + 1)


if __name__ == "__main__":
    main()
