"""Files that people hand in: read as UTF-8 text, or told in one line why they cannot be, and which of them is a run file."""

from __future__ import annotations

import codecs
from pathlib import Path

from rlft.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
# What people hand in for a run file, by its ending, and what to do with it instead.
NOT_RUN_FILES = {
    ".json": "write its keys as TOML (key = value below [section])",
    ".yaml": "write its keys as TOML (key = value below [section])",
    ".yml": "write its keys as TOML (key = value below [section])",
    ".py": "start a script with `python {file}`",
    **dict.fromkeys((".jsonl", ".csv", ".tsv", ".parquet"), 'name data in a run file: source = "{file}" below [data]'),
}


def read_text(path: str | Path, what: str = "") -> str:
    """The text of a file, without a byte order mark. `what` tells which it is ("chat_template"). Raises ConfigError."""
    named = f"{what}: {str(path)!r}" if what else str(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        data = Path(path).read_bytes()
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        kind = "it is UTF-16; save it as UTF-8" if utf16 else "it is binary; name a text file" if b"\0" in data else "save it as UTF-8"
        raise ConfigError(f"{named} is no text in UTF-8 (byte 0x{data[error.start]:02x} in line {line}): {kind}") from error
    except OSError as error:
        raise ConfigError(f"{named} cannot be read: {error.strerror}{cure(error)}") from error


def cure(error: OSError) -> str:
    """What to do about a file that cannot be read, as the end of a message."""
    return "; let this user read it (chmod u+r, or chown)" if isinstance(error, PermissionError) else "; name another file"


def local_file(path: str | Path) -> Path | None:
    """The run file that `path` names on this machine; None when it names a recipe."""
    return Path(path) if Path(path).is_file() else None


def find_run_file(path: str | Path) -> Path:
    """The run file, or the recipe, that `path` names. Raises ConfigError for what is none."""
    if hint := NOT_RUN_FILES.get(Path(path).suffix.lower()):
        raise ConfigError(f"{path}: a run file is TOML, in a file that ends in .toml; {hint.format(file=path)}")
    recipe = RECIPES / f"{path}.toml"
    if file := local_file(path) or (recipe if recipe.is_file() else None):
        return file
    if Path(path).is_dir():
        found = sorted(str(one) for one in Path(path).glob("*.toml"))
        holds = f"it holds {', '.join(found)}" if found else "it holds none"
        raise ConfigError(f"{str(path)!r} is a folder; give the .toml file of a run: {holds}")
    if "=" in str(path):
        raise ConfigError(f"no run file {str(path)!r}; keys are set behind one: run.toml --set {path}")
    names = sorted(p.stem for p in RECIPES.glob("*.toml"))
    raise ConfigError(f"no run file {str(path)!r}; give a TOML file or one of the recipes {names}")
