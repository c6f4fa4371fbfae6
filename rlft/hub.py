"""Where a model or a data set lies: in a folder here, or on the Hugging Face Hub, which is asked once and with a deadline."""

from __future__ import annotations

import re
import threading
from functools import cache
from pathlib import Path
from typing import Literal

from rlft.errors import ConfigError

STARTER = re.compile(r"(?:\./)?runs/(?:(smollm2)|starter(?:-(\d+))?)/?")  # where `rlft starter` puts its models
LOOK_S = 6.0  # longest wait for the Hub's answer
LOCALLY = "give a folder, or download it where there is a connection and copy it here; HF_ENDPOINT names another Hub"


def looks_local(name: str) -> bool:
    """Whether a model or data name means a path on this machine: it is written as one, lies in `runs`, has more parts than a Hub
    name, or its parent folder exists."""
    parts = Path(name).parts
    return name.startswith((".", "/", "~")) or parts[:1] == ("runs",) or len(parts) > 3 or (len(parts) > 1 and Path(name).parent.is_dir())


def check_model(model: str) -> None:
    """Refuse a folder that is missing or holds no model, and a name that the Hub does not have or cannot be asked for.

    Raises:
        ConfigError: within seconds, where a library would try the network for a minute.
    """
    check_folder(model)
    if not Path(model).is_dir():
        check_on_hub(model, "model")


def check_folder(model: str) -> None:
    """Refuse a folder that is missing or holds no model. A Hub name is not asked for. Raises ConfigError."""
    folder, give = Path(model), "give a folder in Hugging Face format, or a Hub name such as 'Qwen/Qwen3-0.6B'"
    if not folder.is_dir():
        if looks_local(model) or model.count("/") != 1:
            raise ConfigError(f"model {model!r}: no such folder (looked in {Path.cwd()}); {_made_by(model) or give}")
        return
    for patterns in (("config.json",), ("*.safetensors", "*.bin")):
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise ConfigError(f"model {model!r}: the folder holds no {' or '.join(patterns)}; {give}")


def _made_by(model: str) -> str:
    """The command that makes a model to start from, where its folder is one of those."""
    found = STARTER.fullmatch(model)
    return f"`rlft starter{' smollm2' if found[1] else f' --seed {found[2]}' if found[2] else ''}` makes it" if found else ""


@cache
def check_on_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Refuse a name that is neither in the Hub's cache on this machine nor found on the Hub.

    Raises:
        ConfigError: the Hub cannot be reached, or has no such model or data set.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    if Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}", "snapshots").is_dir():
        return
    what, error = f"{kind} {name!r} is no folder here, and", _look(name, kind)
    if isinstance(error, OfflineModeIsEnabled):
        kept = f"the cache {constants.HF_HUB_CACHE}"
        raise ConfigError(f"{what} it is not in {kept}, while HF_HUB_OFFLINE keeps from asking the Hub: unset it, or give a folder")
    if isinstance(error, RepositoryNotFoundError):
        raise ConfigError(f"{what} the Hub {constants.ENDPOINT} has none of that name: check it, or set HF_TOKEN if it is private")
    if error is not None:
        told = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{what} the Hub {constants.ENDPOINT} cannot be reached: {told}; {LOCALLY}")


def _look(name: str, kind: str) -> Exception | None:
    """What came of asking; in a thread of its own, since the look-up of an address has no deadline."""
    from huggingface_hub import HfApi

    found: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=LOOK_S)
            found.append(None)
        except Exception as error:  # of whatever library carries the request
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LOOK_S)
    return found[0] if found else TimeoutError(f"no answer within {LOOK_S:g} s")
