"""devinterp and EK-FAC by kronfluence on the same sequences; both only if installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import synchronize
from benchmarks.scaling.neox import Shape, network

VERSIONS = {"devinterp": "2.0.1", "kronfluence": "1.0.1"}


class TooLong(Exception):
    """Raised when a rival has used up its seconds."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLong` after so many seconds, between two operations."""

    def end(*_: Any) -> None:
        raise TooLong(f"did not finish in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def why_missing(name: str) -> str:
    """Return why a rival cannot be measured, or ""."""
    if importlib.util.find_spec(name) is None:
        return f"not installed: pip install {name}=={VERSIONS[name]}"
    return ""


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sequences `[N, T]` as a data set of dicts."""

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids[index]}


def devinterp_cost(
    shape: Shape, train: Tensor, scored: Tensor, *, batch: int, device: str, seed: int, limit: float
) -> dict[str, Any]:
    """Return seconds a draw and peak memory of `devinterp.slt.sampling.sample`.

    bf16 weights, as it takes them; one SGLD step between draws; every sequence is scored in
    batches of `batch`. Two runs of different length take the start and the end out of the figure.
    """
    with _datasets_stub():
        from devinterp.slt.sampling import sample  # type: ignore[import-not-found]

    length = train.shape[1]
    model = network(shape, length=length, seed=seed, device=device, dtype=torch.bfloat16)
    started = time.perf_counter()

    def run(draws: int) -> float:
        with tempfile.TemporaryDirectory() as folder, _without_output():
            before = time.perf_counter()
            sample(
                model, Rows(train), {"scored": (Rows(scored), len(scored) // batch)}, lr=1e-7,
                n_beta=1.0, localization=1.0, num_chains=1, num_draws=draws, batch_size=batch,
                num_init_loss_batches=1, device=device,
                output_path=Path(folder) / "samples.zarr",
            )  # fmt: skip
            synchronize(device)
            return time.perf_counter() - before

    with _peak_memory(device) as found, time_limit(limit):
        run(2)
        short = run(2)
        more = max(2, min(40, int(10 / max(short / 2, 0.01))))  # about 10 seconds of draws
        a_draw = (run(2 + more) - short) / more
    if not a_draw > 0:
        raise RuntimeError("the longer run was no slower than the shorter")
    return {
        "seconds_a_draw": a_draw,
        "draws_timed": more,
        "wall_seconds": time.perf_counter() - started,
        "dtype": "bfloat16 weights",
        **found,
    }


def ekfac_cost(
    shape: Shape, train: Tensor, queries: Tensor, *, batch: int, device: str, seed: int,
    limit: float,
) -> dict[str, Any]:  # fmt: skip
    """Return seconds of fit and scores and peak memory of kronfluence's EK-FAC.

    Linear layers without the head, whose factor would have a row for each piece of the vocabulary;
    its own settings of low precision, eigenvalues in float32.
    """
    import kronfluence as k  # type: ignore[import-not-found]
    from kronfluence.utils.common import (  # type: ignore[import-not-found]
        factor_arguments,
        score_arguments,
    )

    model = network(shape, length=train.shape[1], seed=seed, device=device, dtype=torch.float32)
    tracked = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    ]

    class NextToken(k.Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            ids = batch["input_ids"]
            logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1).float()
            targets = ids[:, 1:].flatten()
            if sample:
                targets = torch.multinomial(logits.detach().softmax(dim=-1), 1).flatten()
            return nn.functional.cross_entropy(logits, targets, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

    batch = batch if shape.num_weights < 5e8 else max(1, batch // 4)
    with (
        _peak_memory(device) as found,
        time_limit(limit),
        tempfile.TemporaryDirectory() as folder,
        _without_output(),
    ):
        task = NextToken()
        analyzer = k.Analyzer(
            "scaling", k.prepare_model(model, task), task, cpu=device == "cpu", disable_tqdm=True,
            output_dir=folder,
        )  # fmt: skip
        started = time.perf_counter()
        analyzer.fit_all_factors(
            "factors", Rows(train), per_device_batch_size=batch,
            factor_args=factor_arguments.smart_low_precision_factor_arguments(),
        )  # fmt: skip
        synchronize(device)
        fit = time.perf_counter() - started
        analyzer.compute_pairwise_scores(
            "scores", "factors", Rows(queries), Rows(train),
            per_device_query_batch_size=min(batch, len(queries)),
            per_device_train_batch_size=batch,
            score_args=score_arguments.smart_low_precision_score_arguments(),
        )  # fmt: skip
        synchronize(device)
        seconds = time.perf_counter() - started
    return {
        "fit_seconds": fit,
        "score_seconds": seconds - fit,
        "seconds": seconds,
        "dtype": "bfloat16 compute",
        **found,
    }


@contextmanager
def _datasets_stub() -> Iterator[None]:
    """Provide `datasets.Dataset`, which devinterp names as a type alone."""
    if importlib.util.find_spec("datasets") is not None:
        yield
        return
    module: Any = ModuleType("datasets")
    module.Dataset = torch.utils.data.Dataset
    module.__spec__ = ModuleSpec("datasets", None)
    sys.modules["datasets"] = module
    try:
        yield
    finally:
        del sys.modules["datasets"]


@contextmanager
def _peak_memory(device: str) -> Iterator[dict[str, float]]:
    """Yield the device's peak memory, filled in when the block ends."""
    found: dict[str, float] = {}
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device.startswith("cuda"):
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30


@contextmanager
def _without_output() -> Iterator[None]:
    """Hide the progress bars of other libraries."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
