"""The command line, thin: the same objects as in Python."""

from __future__ import annotations

import errno
import sys
from contextlib import redirect_stderr
from io import StringIO
from typing import Annotated, Any, NoReturn

import tyro

from bif.cli.benchmark import Lds
from bif.cli.calibrate import Calibrate, Plan
from bif.cli.exits import FILES_FAILED, INTERRUPTED, READER_GONE, RESUME_ME
from bif.cli.kernel import Kernel
from bif.cli.respond import Respond
from bif.cli.runs import Attribute, Average, Check, Demo, Merge, Show
from bif.cli.shift import Shift
from bif.cli.stages import Stages
from bif.cli.steer import Steer
from bif.store import FilesFailed, discard_output
from bif.store.signals import Preempted, termination_raises
from bif.terminal import escape_controls

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
    commands = Annotated[
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Attribute, tyro.conf.subcommand("attribute")]
        | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
        | Annotated[Plan, tyro.conf.subcommand("plan")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Respond, tyro.conf.subcommand("respond")]
        | Annotated[Stages, tyro.conf.subcommand("stages")]
        | Annotated[Kernel, tyro.conf.subcommand("kernel")]
        | Annotated[Shift, tyro.conf.subcommand("shift")]
        | Annotated[Steer, tyro.conf.subcommand("steer")]
        | Annotated[Merge, tyro.conf.subcommand("merge")]
        | Annotated[Average, tyro.conf.subcommand("average")]
        | Annotated[Show, tyro.conf.subcommand("show")]
        | Annotated[Lds, tyro.conf.subcommand("lds")],
        tyro.conf.OmitArgPrefixes,
    ]
    command = _parsed(commands)
    try:
        with termination_raises():
            command.run()
        sys.stdout.flush()
    except Preempted as stopped:
        _exit_with(
            RESUME_ME,
            f"{stopped}. What was committed is kept: run the same command to go on from there.",
        )
    except KeyboardInterrupt as stopped:  # the sampling itself ends with what there is
        _exit_with(
            INTERRUPTED,
            f"interrupted {stopped}; what was committed is kept."
            if stopped.args
            else "interrupted; nothing was added to what had been committed.",
        )
    except _USER_ERRORS as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        _exit_with(2, str(message))
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


def _parsed(commands: Any) -> Any:
    """Return the command of the arguments; settings that contradict each other exit in a sentence.

    Tyro draws a box around what a dataclass refuses, under a name of its own.
    """
    held = StringIO()
    try:
        with redirect_stderr(held):
            return tyro.cli(commands, prog="bif", description="Bayesian influence functions.")
    except SystemExit as stop:
        refused = stop.__context__
        if isinstance(getattr(refused, "arg", None), str):  # of a dataclass, not of one argument
            _exit_with(2, str(getattr(refused, "message", refused)))
        sys.stderr.write(held.getvalue())
        raise


def _exit_with(status: int, message: str) -> NoReturn:
    print(f"bif: {escape_controls(message)}", file=sys.stderr)
    sys.exit(status)
