"""`python -m bif`."""

from bif.cli import main

main()
