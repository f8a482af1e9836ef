"""Runs on disk: manifest, datasets, summary, report.  The only opener of files.

A run's folder holds `run.json` (the manifest), `influence.zarr`, `diagnostics.zarr`,
`summary.json` and `report.html`.  Everything is written to a sibling folder first and moved into
place when it is complete, so a reader never sees half a run.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bif.items import batch_leaves
from bif.types import Batch, Params

if TYPE_CHECKING:
    import xarray as xr

MANIFEST, SUMMARY, REPORT = "run.json", "summary.json", "report.html"
INFLUENCE, DIAGNOSTICS = "influence.zarr", "diagnostics.zarr"


class FolderInUse(FileExistsError):
    """The output folder holds another run, or something that is no run."""


def check_folder(folder: str | Path, manifest: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether `folder` already holds this very run, complete.

    Args:
        folder: The output folder; need not exist.
        manifest: With the `identity` of the run about to start.
        overwrite: Replace whatever run is there.

    Raises:
        FolderInUse: The folder holds another run, the same run cut short, or other files.
    """
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    _refuse_foreign(folder)
    if overwrite:
        return False
    found = read_json(folder / MANIFEST)
    difference = _difference(found.get("identity", {}), dict(manifest["identity"]))
    if difference:
        raise FolderInUse(
            f"{folder} holds another run, with another {difference}. Choose another --out, or "
            "pass --overwrite to replace it."
        )
    if not found.get("complete", False):
        raise FolderInUse(
            f"{folder} holds this run, cut short. Pass --overwrite to run it again, or choose "
            "another --out to keep the partial result."
        )
    return True


def refuse_occupied(folder: str | Path, *, overwrite: bool) -> None:
    """Raise unless a run may be written to `folder`.

    Raises:
        FolderInUse: There is a run and `overwrite` is False, or something that is no run.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file() and not overwrite:
        raise FolderInUse(
            f"{folder} holds a run already: choose another folder, or pass overwrite=True."
        )


def write_run(
    folder: str | Path,
    *,
    manifest: Mapping[str, Any],
    influence: xr.Dataset,
    diagnostics: xr.Dataset,
    summary: Mapping[str, Any],
    report: str,
) -> Path:
    """Write a finished (or interrupted) run in one move; a run that was there is replaced.

    Raises:
        FolderInUse: The folder holds other files.
    """
    folder = Path(folder).absolute()
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        save_dataset(influence, fresh / INFLUENCE)
        save_dataset(diagnostics, fresh / DIAGNOSTICS)
        write_json(fresh / SUMMARY, summary)
        (fresh / REPORT).write_text(report, encoding="utf-8")
        write_json(fresh / MANIFEST, manifest)
        if folder.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(retired / folder.name)
            try:
                fresh.rename(folder)
            except BaseException:
                (retired / folder.name).rename(folder)
                raise
            finally:
                shutil.rmtree(retired)
        else:
            fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Raise unless there is nothing at `folder`, an empty folder, or a run."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / MANIFEST).is_file():
        raise FolderInUse(
            f"{folder} exists and holds no run of bif: choose another --out, or empty it first."
        )


def read_run(folder: str | Path) -> dict[str, Any]:
    """`manifest`, `summary` (dicts), `influence` and `diagnostics` (datasets) of a run's folder.

    Raises:
        FileNotFoundError: The folder holds no run.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no run of bif: it has no {MANIFEST}.")
    return {
        "manifest": read_json(folder / MANIFEST),
        "summary": read_json(folder / SUMMARY),
        "influence": load_dataset(folder, name=INFLUENCE),
        "diagnostics": load_dataset(folder, name=DIAGNOSTICS),
    }


def save_dataset(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a dataset as a zarr folder.

    Raises:
        FileExistsError: There is something at `path`.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another path, or remove it first.")
    # Zarr's third format has no strings of fixed length.
    texts = {n: v.astype(object) for n, v in dataset.variables.items() if v.dtype.kind == "U"}
    dataset.assign(texts).to_zarr(path, mode="w-", consolidated=False)
    return path


def load_dataset(path: str | Path, *, name: str) -> xr.Dataset:
    """Read a zarr folder, or `name` inside a run's folder, into memory.

    Raises:
        FileNotFoundError: Neither is there.
    """
    import xarray as xr

    path = Path(path)
    inside = path / name
    chosen = inside if inside.is_dir() else path
    if not (chosen / "zarr.json").is_file():
        raise FileNotFoundError(f"no {name} at {path}: expected a zarr folder or a run's folder.")
    with xr.open_zarr(chosen, consolidated=False) as dataset:
        return dataset.load()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON object to a file; NaN and infinities, which JSON lacks, become null."""
    path.write_text(json.dumps(_plain(content), indent=2) + "\n", encoding="utf-8")


def fingerprint(tensors: Params | Batch) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors of a batch or of weights."""
    digest = hashlib.sha256()
    for path, leaf in sorted(batch_leaves(tensors).items()):
        digest.update(f"{path}|{leaf.dtype}|{tuple(leaf.shape)}|".encode())
        data = leaf.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("bayesian-influence", "torch", "numpy", "xarray", "zarr", "arviz-stats"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The names of entries that differ, for people."""
    expected = json.loads(json.dumps(_plain(expected)))
    names = []
    for key in sorted(set(found) | set(expected)):
        a, b = found.get(key), expected.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += [f"{key}.{k}" for k in sorted(set(a) | set(b)) if a.get(k) != b.get(k)]
        elif a != b:
            names.append(key)
    return ", ".join(names)


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and callable(value.item):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
