"""Exit statuses besides 0 and 2, which is bad input."""

RESUME_ME, FILES_FAILED, INTERRUPTED, READER_GONE = 75, 74, 130, 141
"""SIGTERM came (EX_TEMPFAIL); files could be neither read nor written (EX_IOERR); Ctrl-C; who read
what was printed has gone, as `head` does."""
