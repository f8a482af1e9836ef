"""Fingerprints of code: of what is reachable from a function or model and is the user's own.

Followed are functions, the global names that they read, modules and classes of the user's own with
their bases, values of closures and defaults, hooks and attributes of modules.  Of libraries the
names count.  Comments, docstrings and formatting do not.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sysconfig
import textwrap
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bif.problem.provenance import fingerprint

_PLAIN = (bool, int, float, complex, bytes, type(None), type(...), range, slice, torch.dtype,
          torch.Size, PurePath, Decimal, Fraction, date, time, timedelta, re.Pattern)  # fmt: skip
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
_LIBRARIES = tuple(
    str(Path(place).resolve())
    for place in (
        sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"),
        Path(torch.__file__).parent, Path(__file__).parents[1],
    )
)  # fmt: skip
# Code of bif counts by the path that it had when the first runs were begun: where its file
# lies now is not part of what a run is.
_FINGERPRINT_MODULES = {"bif.problem.losses": "bif.losses", "bif.problem.proxy": "bif.proxy"}
_CLASS_BOILERPLATE = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__",
    "__dataclass_params__", "__orig_bases__", "__parameters__", "__match_args__", "__qualname__",
    "__annotate__", "__annotate_func__", "__annotations_cache__",
}  # fmt: skip
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def code_fingerprint(function: Any) -> str:
    """Return a function's name and the hash of what it does, as far as that is readable."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{name}@{_hash(_CodeWalk().text(function))}"


def model_code(model: nn.Module) -> str:
    """Return the hash of a model's structure, code and hooks, and of what is no weight.

    Parameters and persistent buffers, which its state holds, do not enter.
    """
    return _hash(_CodeWalk().of_model(model))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


class _CodeWalk:
    """One walk through reachable objects; those seen before are named by their number."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._referenced: list[Any] = []
        """So that no number is given twice."""

    def text(self, value: Any, *, shared: bool = False) -> str:
        """Return a text that differs where the value does.

        Args:
            shared: It is reached by a global name: of an object that is neither data nor called
                the class counts alone, for what it counts or remembers is no code.
        """
        if isinstance(value, str):
            return "device" if _DEVICE.fullmatch(value) else repr(value)
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, torch.device):
            return "device"
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, np.generic):
            return f"{value.dtype}:{value.tobytes().hex()}"
        if id(value) in self._seen:
            return f"#{self._seen[id(value)]}"
        self._seen[id(value)] = len(self._seen)
        self._referenced.append(value)
        return self._describe(value, shared=shared)

    def _describe(self, value: Any, *, shared: bool) -> str:
        if isinstance(value, Tensor):
            return fingerprint(value)
        if isinstance(value, np.ndarray):
            content = (
                self.text(value.tolist())
                if value.dtype.hasobject
                else hashlib.sha256(value.tobytes()).hexdigest()
            )
            return f"{content}{value.dtype}{value.shape}"
        if isinstance(value, nn.Module):
            return self.of_model(value) + fingerprint(dict(value.state_dict()))
        if isinstance(value, dict):
            pairs = (f"{self.text(k)}:{self.text(v, shared=shared)}" for k, v in value.items())
            return f"{{{', '.join(pairs)}}}"
        if isinstance(value, list | tuple | deque):
            return f"[{', '.join(self.text(v, shared=shared) for v in value)}]"
        if isinstance(value, set | frozenset):  # whose order differs from process to process
            return f"set{sorted(self.text(v, shared=shared) for v in value)}"
        if isinstance(value, functools.partial):
            return self._parts("partial", value.func, value.args, value.keywords)
        if isinstance(value, MethodType):
            return self._parts("method", value.__func__, value.__self__)
        if isinstance(value, staticmethod | classmethod):
            return self._parts(type(value).__name__, value.__func__)
        if isinstance(value, property):
            return self._parts("property", value.fget, value.fset)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return value.__name__
        return self._object(value, shared=shared)

    def _parts(self, kind: str, *parts: Any) -> str:
        return f"{kind}({', '.join(self.text(part) for part in parts)})"

    def _function(self, function: FunctionType) -> str:
        cells = [c.cell_contents for c in function.__closure__ or () if _is_filled(c)]
        more = [function.__defaults__, function.__kwdefaults__, vars(function)]
        inside = self._parts("holds", *cells, *(part for part in more if part))
        if not _is_own(function.__code__.co_filename):
            return f"{_path(function)}.{function.__qualname__}{inside}"
        names = self._globals(function.__code__, function.__globals__)
        return f"{_source(function.__code__)}{inside}{names}"

    def _globals(self, code: CodeType, given: Mapping[str, Any]) -> str:
        """Return the global names that code reads, with the texts of their values."""
        names, attributes, imported = _names_of(code, str(given.get("__package__") or ""))
        found = [
            f"{name}={self._global(given[name], attributes)}"
            for name in sorted(names)
            if name in given
        ]
        for name in sorted(imported):
            with contextlib.suppress(Exception):  # it will tell when it is called
                found.append(f"{name}={self._global(importlib.import_module(name), attributes)}")
        return f"<{', '.join(found)}>"

    def _global(self, value: Any, attributes: set[str]) -> str:
        if not isinstance(value, ModuleType):
            return self.text(value, shared=True)
        if not _is_own(getattr(value, "__file__", None) or "<frozen>"):
            return value.__name__
        inside = [
            f"{name}={self._global(vars(value)[name], attributes - {name})}"
            for name in sorted(attributes & set(vars(value)))
        ]
        return f"{value.__name__}({', '.join(inside)})"

    def _class(self, found: type) -> str:
        said = []
        for base in found.__mro__:
            said.append(f"{base.__module__}.{base.__qualname__}")
            if not _is_own_class(base):
                continue
            declared = _declared_values(base)
            for name, member in sorted(vars(base).items()):
                if name in _CLASS_BOILERPLATE:
                    continue
                if declared is None or not isinstance(member, (*_PLAIN, str, BaseException)):
                    said.append(f"{name}={self.text(member, shared=True)}")
                else:  # a counter is no code: what the class was written with counts
                    said.append(f"{name}={declared.get(name, '')}")
        return f"class({', '.join(said)})"

    def _object(self, value: Any, *, shared: bool) -> str:
        wrapped = getattr(value, "__wrapped__", None)  # a cache, or a compiled function
        if wrapped is not None and callable(value):
            return self._parts(type(value).__qualname__, wrapped)
        if inspect.isroutine(value):
            return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        own, state = _is_own_class(type(value)), _state(value)
        kind = self.text(type(value)) if own else type(value).__qualname__
        data = isinstance(value, Namespace | SimpleNamespace) or dataclasses.is_dataclass(value)
        if data or callable(value) or (own and not shared):
            return f"{kind}{self.text(state)}"
        if own or shared:
            return kind
        numbers = {n: v for n, v in state.items() if isinstance(v, float | np.ndarray | Tensor)}
        return f"{kind}{self.text(numbers)}"

    def of_model(self, model: nn.Module) -> str:
        """Return a text of all that a model is besides its state."""
        said = [re.sub(r"0x[0-9a-f]+", "", repr(model))]
        persistent = set(model.state_dict())
        for name, buffer in model.named_buffers():
            if name not in persistent:
                said.append(f"{name}={fingerprint(buffer)}")
        for name, module in model.named_modules():
            said.append(f"{name}:{self.text(type(module))}")
            for hooks in _HOOKS:
                said += [self.text(h, shared=True) for h in getattr(module, hooks, {}).values()]
            own = _is_own_class(type(module))
            for attribute, value in sorted(vars(module).items()):
                if not attribute.startswith("_") and _is_code(value, own=own):
                    said.append(f"{attribute}={self.text(value, shared=True)}")
        for hooks in _HOOKS:
            everywhere = getattr(nn.modules.module, f"_global{hooks}", {})
            said += [self.text(h, shared=True) for h in everywhere.values()]
        return "\n".join(said)


def _is_code(value: Any, *, own: bool) -> bool:
    """Return whether an attribute of a module is code; what a pass has left there is not."""
    if isinstance(value, Tensor):
        return own and value.grad_fn is None
    if isinstance(value, nn.Module):
        return False
    return own or isinstance(value, FunctionType | MethodType)


def _state(value: Any) -> dict[str, Any]:
    """Return the attributes of an object."""
    slots = []
    for base in type(value).__mro__:
        names = vars(base).get("__slots__", ())
        slots += [names] if isinstance(names, str) else list(names)
    slots = [n for n in slots if not n.startswith("__") and hasattr(value, n)]
    return {**{n: getattr(value, n) for n in slots}, **getattr(value, "__dict__", {})}


def _declared_values(found: type) -> dict[str, str] | None:
    """Return the values that a class's body gives its names, None without a source."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(found))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    values: dict[str, str] = {}
    for line in getattr(body, "body", []):
        if isinstance(line, ast.Assign):
            values |= {t.id: ast.dump(line.value) for t in line.targets if isinstance(t, ast.Name)}
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
            values[line.target.id] = ast.dump(line.value)
    return values


def _is_own_class(found: type) -> bool:
    """Return whether a class is the user's, by the files of its methods."""
    for member in vars(found).values():
        function = inspect.unwrap(member) if isinstance(member, FunctionType) else member
        function = getattr(function, "__func__", getattr(function, "fget", function))
        if isinstance(function, FunctionType) and function.__code__.co_filename != "<string>":
            return _is_own(function.__code__.co_filename)
    with contextlib.suppress(TypeError, OSError):
        return _is_own(inspect.getfile(found))
    return found.__module__ == "__main__"


@functools.cache
def _is_own(file: str) -> bool:
    """Return whether code of this file is the user's own, not a library's."""
    if file.startswith("<"):
        return not file.startswith(("<frozen", "<attrs", "<__array"))
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(place) for place in _LIBRARIES)


def _names_of(code: CodeType, package: str) -> tuple[set[str], set[str], set[str]]:
    """Return global names, attribute names and imported modules of code and inner code."""
    names, attributes, imported = set(), set(), set()
    level = 0
    for one in _with_inner(code):
        constants: list[Any] = []
        for step in dis.get_instructions(one):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names.add(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
                attributes.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                level = next((c for c in reversed(constants[-2:]) if isinstance(c, int)), 0)
                with contextlib.suppress(ImportError, ValueError):
                    full = importlib.util.resolve_name("." * level + step.argval, package or None)
                    imported.add(full)
            constants.append(step.argval if step.opname.startswith("LOAD_CONST") else None)
    return names, attributes, {name for name in imported if _is_own_module(name)}


def _is_own_module(module: str) -> bool:
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(module)
        return spec is not None and bool(spec.origin) and _is_own(str(spec.origin))
    return False


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _source(code: CodeType) -> str:
    """Return source without docstrings, comments and formatting, or else the bytecode."""
    if code.co_name != "<lambda>":  # of which a line may have several
        with contextlib.suppress(OSError, TypeError, SyntaxError, ValueError, RecursionError):
            tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                first = body[0] if isinstance(body, list) and body else None
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    if isinstance(first.value.value, str):
                        node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
            return ast.unparse(tree)
    return _bytecode(code)


def _bytecode(code: CodeType) -> str:
    constants = [
        _bytecode(c) if isinstance(c, CodeType)
        else str(sorted(map(repr, c))) if isinstance(c, frozenset)
        else repr(c)
        for c in code.co_consts
    ]  # fmt: skip
    return f"{code.co_code.hex()}{code.co_names}{code.co_freevars}{constants}"


def _path(found: Any) -> str:
    """Return the module of a function, by the name that fingerprints use."""
    module = getattr(found, "__module__", "")
    return _FINGERPRINT_MODULES.get(module, module)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
