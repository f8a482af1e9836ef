"""The command line, thin: the same objects as in Python."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import redirect_stderr
from functools import reduce
from io import StringIO
from operator import or_
from typing import Annotated, Any, NoReturn

import tyro

from bif import __version__
from bif.cli.averages import Average, AverageOverDraws
from bif.cli.benchmark import Lds
from bif.cli.calibrate import Calibrate, Plan
from bif.cli.exits import FILES_FAILED, GOES_ON, INTERRUPTED, READER_GONE, RESUME_ME
from bif.cli.faults import SHOW_ALL, in_words, unexpected_in_words
from bif.cli.kernel import Kernel
from bif.cli.options import CONFIG, without_empty_defaults
from bif.cli.respond import Respond
from bif.cli.runs import Attribute, Check, Demo, Merge, Show
from bif.cli.shift import Shift
from bif.cli.stages import Stages
from bif.cli.steer import Steer
from bif.cli.streaming import StreamCovariance
from bif.store import FilesFailed, discard_output
from bif.store.signals import Preempted, termination_raises
from bif.terminal import escape_controls

_COMMANDS: dict[str, type] = {
    "demo": Demo,
    "attribute": Attribute,
    "calibrate": Calibrate,
    "plan": Plan,
    "check": Check,
    "respond": Respond,
    "stages": Stages,
    "kernel": Kernel,
    "shift": Shift,
    "steer": Steer,
    "merge": Merge,
    "average": Average,
    "average-over-draws": AverageOverDraws,
    "stream-covariance": StreamCovariance,
    "show": Show,
    "lds": Lds,
}

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_ERRORS = _DISK_FULL | {errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG, errno.ENOTCONN}

_USER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    RuntimeError,
)


def main() -> None:
    """Run the command `bif`; exit with 2 on bad input."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        print(f"bif {__version__}")
        return
    try:
        command = _parsed()
        with termination_raises():
            command.run()
        sys.stdout.flush()
    except Preempted as stopped:
        _exit_with(RESUME_ME, f"{stopped}. {GOES_ON}")
    except KeyboardInterrupt as stopped:  # the sampling itself ends with what there is
        how_far = f" {stopped}" if stopped.args else ""
        _exit_with(INTERRUPTED, f"interrupted{how_far}. {GOES_ON}")
    except _USER_ERRORS as error:
        _raise_if_asked()
        _exit_with(2, in_words(error))
    except BrokenPipeError:
        discard_output()  # what is still to come
        sys.exit(READER_GONE)
    except OSError as error:
        if not isinstance(error, FilesFailed) and error.errno not in _DISK_ERRORS:
            _exit_with(2, f"{error} ({type(error).__name__})")
        full = error.errno in _DISK_FULL
        what = "the disk is full" if full else "files could be neither read nor written"
        remedy = "make room" if full else "mend that"
        _exit_with(
            FILES_FAILED,
            f"{what} ({error}). What was committed is kept: {remedy}, and run the same command to "
            "go on from there.",
        )
    except Exception as error:
        _raise_if_asked()
        _exit_with(1, unexpected_in_words(error))


def _raise_if_asked() -> None:
    """Raise the error that is handled, with all its frames, where the environment asks for it."""
    if os.environ.get(SHOW_ALL):
        raise


def _parsed() -> Any:
    """Return the command of the arguments; settings that contradict each other exit in a sentence.

    Tyro draws a box around what a dataclass refuses, under a name of its own.
    """
    commands: list[Any] = [
        Annotated[without_empty_defaults(command), tyro.conf.subcommand(name)]
        for name, command in _COMMANDS.items()
    ]
    held = StringIO()
    try:
        with redirect_stderr(held):
            return tyro.cli(
                reduce(or_, commands), prog="bif", config=CONFIG,
                description=f"Bayesian influence functions, version {__version__}.",
            )  # fmt: skip
    except SystemExit as stop:
        refused = stop.__context__
        if isinstance(getattr(refused, "arg", None), str):  # of a dataclass, not of one argument
            _exit_with(2, str(getattr(refused, "message", refused)))
        sys.stderr.write(held.getvalue())
        raise


def _exit_with(status: int, message: str) -> NoReturn:
    print(f"bif: {escape_controls(message)}", file=sys.stderr)
    sys.exit(status)
