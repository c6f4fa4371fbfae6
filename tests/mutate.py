"""Apply each deliberate bug of tests/mutations.toml to a copy of the tree: a test must fail.

    python tests/mutate.py               every bug
    python tests/mutate.py kl batching   those in files whose path contains one of the words

The tests that run are the file's mirror (rlft/a/b.py -> tests/a/test_b.py), or the entry's own
`tests`. Exits 1 when a bug is missed, when its text is not in the file exactly once, or when
the tests could not run at all.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
LIMIT_S = 120  # a bug may well make a test loop for ever
PASSED, FAILED = 0, 1  # pytest's exit codes; others mean that the tests did not run


def main(words: list[str]) -> int:
    mutations = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text())["mutation"]
    chosen = [m for m in mutations if not words or any(word in m["file"] for word in words)]
    load_libraries()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("rlft", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        tests = sorted({test for m in chosen for test in tests_of(m)})
        code, said = run(copy, tests)
        if code != PASSED:
            print(f"without any bug the tests do not pass:\n{said}")
            return 1
        verdicts = [judge(copy, m) for m in chosen]
    print(f"{verdicts.count('caught')} of {len(verdicts)} caught")
    return 0 if verdicts and set(verdicts) == {"caught"} else 1


def tests_of(mutation: dict) -> list[str]:
    path = Path(mutation["file"]).relative_to("rlft")
    return mutation.get("tests") or [str(Path("tests") / path.parent / f"test_{path.name}")]


def judge(copy: Path, mutation: dict) -> str:
    """Apply one bug to the copy, run its tests, undo it, print a line."""
    file, started = copy / mutation["file"], time.monotonic()
    source = file.read_text()
    if source.count(mutation["text"]) != 1:
        verdict, said = "STALE", f"the text stands in the file {source.count(mutation['text'])} times"
    else:
        file.write_text(source.replace(mutation["text"], mutation["replacement"]))
        code, said = run(copy, tests_of(mutation))
        file.write_text(source)
        verdict = {PASSED: "MISSED", FAILED: "caught"}.get(code, "BROKEN")
    failed = [line.removeprefix("FAILED ").split(" - ")[0] for line in said.splitlines() if line.startswith("FAILED ")]
    detail = failed[0].rpartition("::")[2] if failed else "" if verdict == "MISSED" else said[-500:]
    line = f"{verdict} {time.monotonic() - started:4.1f} s  {mutation['file']}: {mutation['text'].strip().splitlines()[0][:60]}"
    print(f"{line}\n               {detail}" if detail else line, flush=True)
    return verdict


def load_libraries() -> None:
    """Once, before the forks: what the tests would otherwise load for every bug. Nothing of rlft."""
    for name in ("hypothesis", "numpy", "pydantic", "tomli_w", "transformers"):
        importlib.import_module(name)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))


def run(copy: Path, tests: list[str]) -> tuple[int, str]:
    """pytest on the copy, in a fork that has torch loaded already: exit code and output."""
    output = copy / "output.txt"
    child = multiprocessing.get_context("fork").Process(target=pytest_in, args=(copy, tests, output))
    child.start()
    child.join(LIMIT_S)
    if child.exitcode is None:
        child.kill()
        child.join()
        return FAILED, f"FAILED to end within {LIMIT_S} s"
    return child.exitcode, output.read_text()


def pytest_in(copy: Path, tests: list[str], output: Path) -> None:
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True  # the next bug may come within the clock tick of a cached file
    torch.set_num_threads(1)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = pytest.main(["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-W", "ignore", *tests])
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
