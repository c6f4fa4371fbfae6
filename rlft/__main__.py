"""The command `rlft`, and `python -m rlft`: the command line under a guard that answers Ctrl-C and SIGTERM."""

import sys

from rlft.runs.stopping import guard


def main() -> None:
    """Entry point. Guarded before anything is loaded that takes time."""
    if sys.argv[1:2] != ["serve-reward"]:  # a server ends by itself, with its requests answered
        guard(sys.argv[1:])
    from rlft.cli import main as command

    command()


if __name__ == "__main__":
    main()
