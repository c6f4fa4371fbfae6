"""Which folder holds a run, where a person names one near it: a run file, the folder of several runs, or a folder inside one."""

from __future__ import annotations

from pathlib import Path

from rlft.config import load
from rlft.errors import ConfigError

SHOWN = 10  # runs that a message lists


def is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file()


def check_run(path: Path) -> None:
    """Refuse what is not the folder of a run, and name the runs near it. Raises ConfigError."""
    if is_run(path):
        return
    if path.is_file() and path.suffix == ".toml" and not is_run(path.parent):
        folder = Path(load(path).run_dir)
        told = f"its run lies in {str(folder)!r}" if is_run(folder) else f"it has not been run: {str(folder)!r} holds no run"
        raise ConfigError(f"{str(path)!r} is a run file, and no folder of a run; {told}")
    inner = sorted(str(one.parent) for depth in ("*", "runs/*") for one in path.glob(f"{depth}/config.toml"))
    if inner:
        more = f" and {len(inner) - SHOWN} more" if len(inner) > SHOWN else ""
        raise ConfigError(f"{str(path)!r} is no run, and holds runs; give the folder of one: {', '.join(inner[:SHOWN])}{more}")
    above = next((str(one) for one in path.absolute().parents if is_run(one) and path.exists()), "")
    give = f"it belongs to the run {above!r}: give that folder" if above else "give the folder of one, such as runs/demo"
    raise ConfigError(f"no run in {str(path)!r}; {give}")
