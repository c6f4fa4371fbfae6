"""`python -m rlft` is the command line."""

from rlft.cli import main

main()
