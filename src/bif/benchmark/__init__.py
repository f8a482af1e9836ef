"""The retraining benchmark: every method in one harness, judged by networks that were retrained."""

from bif.benchmark.foreign import judge_file
from bif.benchmark.harness import Results, benchmark, benchmark_sizes
from bif.benchmark.task import RESIDUAL, Task
from bif.benchmark.tasks import SETTINGS, named_task
from bif.problem.proxy import Proxy

__all__ = [
    "RESIDUAL",
    "SETTINGS",
    "Proxy",
    "Results",
    "Task",
    "benchmark",
    "benchmark_sizes",
    "judge_file",
    "named_task",
]
