"""Cost of a draw against the size of a language model, the items and the queries.

GPT-NeoX with random weights in the shapes of Pythia. 128 train sequences and 16 queries of 512
tokens are scored at every draw, with one SGLD step of batch 16 between draws: float32 weights
(bfloat16 in the lean layout) and losses, bfloat16 compute. devinterp scores the same 144
sequences at every draw; EK-FAC by kronfluence is fitted to the 128 and scores them for the 16, and
the response solves for the 16 with the curvature of the 128 or of `--curvature-items` of them.
A rival goes up to the largest shape that it finishes within `--limit` seconds.

    python -m benchmarks.scaling --out benchmarks/results --device cuda
    python -m benchmarks.scaling --out benchmarks/results --device cuda --sweep 70M \
        --items 128 256 512 1024 --queries 16 64 256 --name scaling-items

`--add FILE` begins with the rows of an earlier file of the same device, so that a run may be cut
into several commands.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import bif
from benchmarks.common import parser, print_table, read, synchronize, write
from benchmarks.scaling.neox import PYTHIA, SHAPES, Layout, Shape, layouts_of, network, sequences
from benchmarks.scaling.power_laws import fit_laws
from benchmarks.scaling.response import response_cost
from benchmarks.scaling.rivals import TooLong, devinterp_cost, ekfac_cost, why_missing
from bif.calibration.memory_plan import forecast_live
from bif.language.linear_loss import chunked_next_token
from bif.runs.block_recorder import BlockRecorder
from bif.sampling.engine import Engine
from bif.sampling.oracles import LiveOracle
from bif.sampling.settings import RunSettings

PEAK_BF16 = 989e12
"""FLOP/s of an H100 SXM without sparsity, by its data sheet."""
BATCH = 16
TARGETS = {"14M": 0.020, "160M": 0.085, "1.4B": 0.54}
"""Seconds a draw that are to be reached on one H100, by shape."""
METHODS = ("bif", "response", "devinterp", "ekfac")
_WARM_UP = 5


def live_engine(
    shape: Shape,
    layout: Layout,
    how: str,
    arguments: argparse.Namespace,
    *,
    items: int,
    queries: int,
) -> Engine:
    """Return the engine of a live run; memory that it does not hold itself is freed."""
    length, device = arguments.length, arguments.device
    dtype = torch.bfloat16 if layout.memory == "lean" else torch.float32
    model = network(shape, length=length, seed=arguments.seed, device=device, dtype=dtype)
    if layout.recompute:
        model.gradient_checkpointing_enable()
    ids = sequences(shape, items + queries, length=length, seed=arguments.seed).to(device)
    problem = bif.Problem(
        model,
        chunked_next_token,
        train={"input_ids": ids[:items]},
        queries={"input_ids": ids[items:]},
    )
    settings = RunSettings(
        movable=("*",), block_size=1, oracle="live", memory=layout.memory, sampler="sgld",
        gradient="minibatch",
        batch_size=min(BATCH, items), micro_batch=min(BATCH, items), chunk_size=arguments.chunk,
        nbeta=float(items), gamma=1e5, burn_in=0, thin=1, chains=2, draws=10**6,
        # Its size costs nothing; norms' scales near 1 in bfloat16 refuse a smaller one.
        step_size=2e-5 if layout.memory == "lean" else 1e-6,
        gradient_precision="bfloat16", loss_precision="bfloat16", compiled=how == "compiled",
        device=device, seed=arguments.seed,
    )  # fmt: skip
    engine = Engine(problem, settings)
    if layout.memory == "plain":  # it has copies of everything
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(1).expand(parameter.shape)
    return engine


def bif_cost(
    engine: Engine, *, seconds: float, forecast: bool, profile: bool = False
) -> dict[str, Any]:
    """Return seconds a draw after a warm-up, peak memory, and the plan's forecast of both."""
    device = engine.device
    on_gpu = device.type == "cuda"
    row: dict[str, Any] = {}
    if forecast:
        plan = forecast_live(engine)
        row |= {
            "forecast_gib": plan.peak / 2**30,
            "forecast_seconds_a_draw": plan.step + plan.record,
        }
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    recorder = BlockRecorder(range(1), num_draws=10**4, distance_limit=float("inf"))
    draws = engine.observed_draws(0, 1)

    def take(count: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for draw, train, query in islice(draws, count):
            recorder.add(train, query, engine.distance_squared(draw.params))
        synchronize(device)
        return time.perf_counter() - started

    warm_up = take(_WARM_UP)
    once = take(1)
    count = max(2, min(200, int(seconds / max(once, 1e-4))))
    row |= {
        "seconds_a_draw": take(count) / count,
        "draws_timed": count,
        "warm_up_seconds": warm_up,
    }
    if profile:
        print_kernels(lambda: take(2))
    if on_gpu:
        assert isinstance(engine.oracle, LiveOracle)
        # What CUDA graphs keep for themselves is reserved, not allocated.
        replays = engine.oracle.replays
        peak = torch.cuda.max_memory_reserved if replays else torch.cuda.max_memory_allocated
        row["peak_memory_gib"] = peak() / 2**30
    return row


def print_kernels(run: Callable[[], object]) -> None:
    """Print where the time goes: what device and host do longest."""
    with torch.profiler.profile(record_shapes=True) as found:
        run()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    kernels = found.key_averages(group_by_input_shape=True)
    print(kernels.table(sort_by=by, row_limit=25, max_name_column_width=60), flush=True)


def measure_bif(
    shape: Shape, how: str, arguments: argparse.Namespace, *, items: int, queries: int
) -> dict[str, Any]:
    """Return the cost of the first layout that fits, or the reason why none does."""
    capacity = _capacity(arguments.device)
    reasons = []
    layouts = layouts_of(shape, batch=BATCH, chunk=arguments.chunk, length=arguments.length)
    for layout in layouts:
        if arguments.memory not in (None, layout.memory):
            continue
        name = layout.memory + (", recomputed" if layout.recompute else "")
        if layout.bytes > capacity and layout is not layouts[-1]:
            reasons.append(f"{name}: about {layout.bytes / 2**30:.0f} GiB")
            continue
        about = {"how": how, "layout": name, "expected_gib": layout.bytes / 2**30}
        try:
            engine = live_engine(shape, layout, how, arguments, items=items, queries=queries)
            cost = bif_cost(
                engine, seconds=arguments.seconds, forecast=arguments.forecast,
                profile=arguments.profile,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            reasons.append(f"{name}: {_first_sentence(error)}")
            continue
        except Exception as error:  # such as a compiler's; the other rows stand
            return {**about, "reason": f"{type(error).__name__}: {_first_sentence(error)}"}
        finally:
            engine = None
            _free()
        return {**about, **cost, **({"reason": "; ".join(reasons)} if reasons else {})}
    return {"how": how, "reason": "; ".join(reasons) or "no such layout"}


def measure_rival(
    method: str, shape: Shape, arguments: argparse.Namespace, *, items: int, queries: int
) -> dict[str, Any]:
    """Return the cost of a rival, or the reason why it has none."""
    ids = sequences(shape, items + queries, length=arguments.length, seed=arguments.seed)
    given: Any = {
        "batch": BATCH, "device": arguments.device, "seed": arguments.seed,
        "limit": arguments.limit,
    }  # fmt: skip
    started = time.perf_counter()
    try:
        if method == "devinterp":
            return devinterp_cost(shape, ids[:items], ids, **given)
        return ekfac_cost(shape, ids[:items], ids[items:], **given)
    except TooLong as error:
        return {"reason": str(error), "unfinished": True}
    except torch.OutOfMemoryError as error:
        return {"reason": _first_sentence(error), "unfinished": True}
    except Exception as error:  # whatever another library meets; the other rows stand
        return {"reason": f"{type(error).__name__}: {_first_sentence(error)}"}
    finally:
        print(f"  {method}: {time.perf_counter() - started:.1f} s in all", flush=True)
        _free()


def measure_response(
    shape: Shape, arguments: argparse.Namespace, *, items: int, queries: int
) -> dict[str, Any]:
    """Return the cost of the response by solving, or the reason why it has none."""
    a = arguments
    ids = sequences(shape, items + queries, length=a.length, seed=a.seed)
    try:
        return response_cost(
            shape, ids[:items], ids[items:], device=a.device, seed=a.seed, damping=a.damping,
            curvature_items=a.curvature_items, steps=a.solver_steps, exact=a.exact,
            exact_queries=a.exact_queries,
        )  # fmt: skip
    except (torch.OutOfMemoryError, ValueError) as error:
        return {"reason": _first_sentence(error)}
    finally:
        _free()


def add_rates(
    row: dict[str, Any], shape: Shape, arguments: argparse.Namespace, *, items: int, queries: int
) -> dict[str, Any]:
    """Add to a row what follows from seconds a draw and the shape."""
    length = arguments.length
    about = {
        "shape": shape.name, "method": row["method"], "weights": shape.num_weights,
        "num_items": items, "num_queries": queries,
    }  # fmt: skip
    if row.get("seconds_a_draw"):
        scored, a_draw = items + queries, row["seconds_a_draw"]
        flop = shape.flop_a_draw(scored=scored, stepped=BATCH, length=length)
        row |= {
            "tokens_a_second": scored * length / a_draw,
            "tflops": flop / a_draw / 1e12,
            "share_of_bf16_peak": flop / a_draw / PEAK_BF16,
            "seconds": arguments.draws * a_draw,
        }
        if row["method"] == "bif" and shape.name in TARGETS and scored == 144 and length == 512:
            row |= {"target": TARGETS[shape.name], "met": a_draw <= TARGETS[shape.name]}
    return {**about, **row}


class Measurement:
    """The rows of the benchmark, which are written anew after each."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        self._commands: list[str] = []
        if arguments.add is not None:
            earlier = read(arguments.add)
            self.rows = earlier["rows"]
            self._commands = [*earlier.get("earlier_commands", []), earlier["command"]]
        self._beyond: dict[str, str] = {}

    def measure(self, shape: Shape, *, items: int, queries: int) -> None:
        """Measure every method on one shape with so many items and queries."""
        a = self.arguments
        for method in a.only:
            for how in modes(shape, a) if method == "bif" else [""]:
                if method == "bif":
                    row = measure_bif(shape, how, a, items=items, queries=queries)
                elif method == "response":
                    row = measure_response(shape, a, items=items, queries=queries)
                elif self._beyond.get(method):
                    row = {"reason": self._beyond[method]}
                elif why_missing(_package(method)):
                    row = {"reason": why_missing(_package(method))}
                else:
                    row = measure_rival(method, shape, a, items=items, queries=queries)
                if row.get("unfinished"):
                    self._beyond[method] = f"not tried: {shape.name} {row['reason']}"
                self._add({"method": method, **row}, shape, items=items, queries=queries)

    def _add(self, row: dict[str, Any], shape: Shape, *, items: int, queries: int) -> None:
        row = add_rates(row, shape, self.arguments, items=items, queries=queries)
        self.rows = [r for r in self.rows if _case(r) != _case(row)] + [row]
        self.rows.sort(key=lambda r: (list(SHAPES).index(r["shape"]), METHODS.index(r["method"])))
        print_table([row])
        write(
            self.arguments.name, self.arguments, self.rows, fits=fits(self.rows),
            draws_of_a_run=self.arguments.draws, length=self.arguments.length, batch=BATCH,
            earlier_commands=self._commands,
        )  # fmt: skip


def fits(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return exponents along weights, items and queries, and the crossing points."""
    exponents, crossings = [], []
    axes = ("weights", "num_items", "num_queries")
    for along in axes:
        fixed = [axis for axis in axes if axis != along]
        some, where = fit_laws(rows, along=along, fixed=fixed)
        exponents += some
        crossings += where
    return {"exponents": exponents, "crossings": crossings}


def modes(shape: Shape, arguments: argparse.Namespace) -> list[str]:
    """Return the modes in which the same draws run: those asked for, else fewer if large."""
    if arguments.how:
        return arguments.how
    return ["eager", "compiled"] if shape.num_weights < 3e9 else ["eager"]


def cases(arguments: argparse.Namespace) -> Iterator[tuple[Shape, int, int]]:
    """Yield shapes, items and queries in their order."""
    items, queries = arguments.items, arguments.queries
    if arguments.sweep:
        shape = SHAPES[arguments.sweep]
        yield from ((shape, n, queries[0]) for n in items)
        yield from ((shape, items[0], q) for q in queries[1:])
        return
    for name in arguments.shapes:
        yield SHAPES[name], items[0], queries[0]


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the key of a row."""
    return tuple(
        row.get(k)
        for k in ("shape", "method", "how", "num_items", "num_queries", "curvature_items")
    )


def _package(method: str) -> str:
    return {"ekfac": "kronfluence"}.get(method, method)


def _capacity(device: str) -> float:
    """Return bytes of the device that may be used."""
    if not device.startswith("cuda"):
        return float("inf")
    return 0.94 * torch.cuda.get_device_properties(torch.device(device)).total_memory


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition(". ")[0][:200]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=PYTHIA)
    made.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--seconds", type=float, default=6.0, help="of timed draws, a row of bif")
    made.add_argument("--limit", type=float, default=300.0, help="seconds a rival may take")
    made.add_argument("--draws", type=int, default=1000, help="of a run, for the comparisons")
    made.add_argument("--how", nargs="+", choices=("eager", "compiled"))
    made.add_argument("--memory", choices=("plain", "fused", "lean"))
    made.add_argument(
        "--forecast", action="store_true", help="compare with bif.calibration.memory_plan as well"
    )
    made.add_argument("--profile", action="store_true", help="print what takes the time")
    made.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    made.add_argument("--chunk", type=int, default=128, help="sequences of a scoring pass")
    made.add_argument("--items", type=int, nargs="+", default=[128])
    made.add_argument("--queries", type=int, nargs="+", default=[16])
    made.add_argument("--sweep", choices=list(SHAPES), help="vary items and queries on this shape")
    made.add_argument("--damping", type=float, help="of the response; calibrated by default")
    made.add_argument("--curvature-items", type=int, help="of the response; all by default")
    made.add_argument("--solver-steps", type=int, help="of the response; to a residual by default")
    made.add_argument(
        "--exact",
        choices=("same", "all"),
        help="compare with a solve to 1e-3, by the same items or by all in TF32",
    )
    made.add_argument("--exact-queries", type=int, default=4, help="first queries of that")
    made.add_argument("--add", type=Path, help="file whose rows come first")
    made.add_argument("--name", default="scaling", help="of the JSON file")
    return made


def main() -> None:
    arguments = options().parse_args()
    measuring = Measurement(arguments)
    started = time.perf_counter()
    for shape, items, queries in cases(arguments):
        print(f"{shape.name}, {items} × {queries}: {time.perf_counter() - started:.0f} s so far")
        measuring.measure(shape, items=items, queries=queries)
    print_table(measuring.rows)
    for name, found in fits(measuring.rows).items():
        print(name)
        print_table(found)


if __name__ == "__main__":
    main()
