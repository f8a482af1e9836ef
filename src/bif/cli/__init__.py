"""The command line, thin: the same objects as in Python."""

from bif.cli.entry import main
from bif.cli.loading import load_groups, load_problem

__all__ = ["load_groups", "load_problem", "main"]
