"""Exit statuses besides 0 and 2, which is bad input, and what is said with them."""

RESUME_ME, FILES_FAILED, INTERRUPTED, READER_GONE = 75, 74, 130, 141
"""Statuses after SIGTERM (EX_TEMPFAIL), after a failure to read or write files (EX_IOERR), after
Ctrl-C, and after the reader of the output has gone, as `head` does."""
GOES_ON = "What was committed is kept: run the same command to go on from there."
"""What is said of a command that was stopped."""
