"""Exit statuses besides 0 and 2, which is bad input."""

RESUME_ME, FILES_FAILED, INTERRUPTED = 75, 74, 130
"""SIGTERM came (EX_TEMPFAIL); files could not be written (EX_IOERR); Ctrl-C."""
