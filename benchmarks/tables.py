"""Make `results/README.md` from the dated JSON files beside it; nothing in it is typed by hand.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "digits": {
        "method": "method", "target": "retrained from", "lds": "LDS", "ci_low": "95 % from",
        "ci_high": "to", "ceiling": "ceiling", "share_of_exact": "share of exact",
        "minus_exact": "minus exact", "minus_exact_low": "95 % from", "minus_exact_high": "to",
        "seconds": "seconds", "draws": "draws", "ess_median": "effective draws",
    },
    "draws": {
        "sampler": "sampler", "how": "how", "chains": "chains", "draws_per_second": "draws/s",
        "tflops": "TFLOP/s", "share_of_bf16_peak": "share of bf16 peak",
        "peak_memory_gib": "peak GiB", "loss_error_rms": "loss error, rms",
        "loss_error_relative": "relative", "loss_error_max": "largest",
        "mean_loss": "mean loss", "mean_loss_error": "±", "mean_loss_float32": "in float32",
        "mean_loss_float32_error": "±",
    },
    **dict.fromkeys(
        ("durability-demo", "durability-fashion"),
        {
            "pair": "pair", "draws": "draws", "seconds_memory": "seconds, sums in memory",
            "seconds_disk": "seconds, traces on disk", "overhead": "overhead",
            "overhead_error": "±", "overhead_to_scores": "to the scores",
            "overhead_without_setup": "without set-up", "traces_mib": "traces, MiB",
        },
    ),
}  # fmt: skip
ABOUT = {
    "digits": "LDS on scikit-learn's digits against retraining. Damping of exact influence and "
    "settings of the BIF were chosen on other subsets and queries. The ceiling from the checkpoint "
    "is not known: full-batch retraining from one start has no noise.",
    "durability-demo": "What it costs that nothing is lost, `bif demo`: the run on disk with all "
    "traces, beside the same with sums in memory; overheads as shares of the latter.",
    "durability-fashion": "The same for BAOAB on the Fashion-MNIST network, 6,000 items and 200 "
    "queries.",
    "draws": "Draws a second on the Fashion-MNIST network, 6,000 items and 200 queries. FLOPs are "
    "counted as 6 a weight and item in steps and 2 in recording.",
}


def main() -> None:
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/tables.py` from the JSON files in this folder, which hold the "
        "full settings. The newest run of each benchmark is shown; losses are included.",
    ]
    for name, columns in COLUMNS.items():
        files = sorted(RESULTS.glob(f"{name}-*.json"))
        if files:
            lines += section(name, json.loads(files[-1].read_text(encoding="utf-8")), columns)
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def section(name: str, run: dict[str, Any], columns: dict[str, str]) -> list[str]:
    hardware, versions = run["hardware"], run["versions"]
    where = hardware.get("gpu") or f"{hardware['cores']} CPU cores ({hardware['machine']})"
    keys = [key for key in columns if any(key in row for row in run["rows"])]
    return [
        "",
        f"## {name}, {run['date']}",
        "",
        ABOUT[name],
        "",
        f"`{run['command']}` on {where}, PyTorch {versions['torch']}, Python "
        f"{versions['python']}, seed {run['seed']}.",
        "",
        "| " + " | ".join(columns[key] for key in keys) + " |",
        "|" + " --- |" * len(keys),
        *("| " + " | ".join(cell(row.get(key)) for key in keys) + " |" for row in run["rows"]),
    ]


def cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
