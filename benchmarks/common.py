"""What every benchmark shares: arguments, provenance, one dated JSON file, a table."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

import bif
from bif import store
from bif.problem.provenance import versions

Asked = TypeVar("Asked")
Found = TypeVar("Found")
RESULTS = Path(__file__).parent / "results"


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--data", type=Path, help="folder with the standard data files")
    made.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    made.add_argument("--device", default="cpu")
    made.add_argument("--seed", type=int, default=0)
    return made


def side_by_side(
    work: Callable[[Asked], Found], items: Sequence[Asked], jobs: int
) -> Iterator[Found]:
    """Results in order, each by a process of one thread if there are several at a time."""
    if jobs == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, items)


def hardware(device: str) -> dict[str, Any]:
    """The machine in words."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        facts |= {"gpu": properties.name, "gpu_memory_gib": properties.total_memory / 2**30}
    return facts


def write(name: str, arguments: argparse.Namespace, rows: Sequence[dict[str, Any]],
          **further: Any) -> Path:  # fmt: skip
    """Write `NAME-DATE.json` with the rows, the command, versions, hardware and seed."""
    date = datetime.date.today().isoformat()
    content = {
        "benchmark": name,
        "date": date,
        "command": " ".join(["python", *_portable(sys.argv)]),
        "seed": arguments.seed,
        "versions": versions(),
        "hardware": hardware(arguments.device),
        **further,
        "rows": list(rows),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{name}-{date}.json"
    path.write_text(json.dumps(store.plain(content), indent=1) + "\n", encoding="utf-8")
    return path


def trust(run: bif.Run) -> dict[str, Any]:
    """What a row of results says of its run: R-hat, reliability, trusted, gates that failed."""
    figures = {name: run.summary[name] for name in ("rhat_max", "reliability", "trusted")}
    return {**figures, "failed_gates": run.failed_gates}


def newest(name: str) -> dict[str, Any] | None:
    """The newest committed run of a benchmark."""
    runs = every(name)
    return runs[-1] if runs else None


def every(name: str) -> list[dict[str, Any]]:
    """All committed runs of a benchmark, in the order of their dates."""
    files = sorted(RESULTS.glob(f"{name}-????-??-??.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def newest_of_sizes(name: str) -> list[dict[str, Any]]:
    """The newest run of a benchmark, and of each size that has files `NAME-SIZE-DATE.json`."""
    found = (re.fullmatch(r"-(\d+)-\d{4}(-\d\d){2}", file.stem.removeprefix(name))
             for file in RESULTS.glob(f"{name}-*.json"))  # fmt: skip
    sizes = sorted({int(match[1]) for match in found if match})
    runs = [newest(name), *(newest(f"{name}-{size}") for size in sizes)]
    return [run for run in runs if run is not None]


def machine(run: dict[str, Any]) -> str:
    """Where it ran."""
    hardware = run["hardware"]
    return hardware.get("gpu") or f"{hardware['cores']} CPU cores ({hardware['machine']})"


def _portable(words: Sequence[str]) -> list[str]:
    """The command without folders of this machine."""
    named = {"--data": "DIR", "--out": "DIR", "--banks": "BANKS", "--add": "FILE"}
    return [named.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows as aligned text, one column a key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys] + [[_cell(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(keys))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
