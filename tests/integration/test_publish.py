"""Real engines that miss, mix up or lose weights are found out in float32 and bfloat16; a healthy publish passes."""

import importlib.util
from pathlib import Path

import pytest

from rlft.recipes.starter import make_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "publish" / "run.py"
FAULTS = ["missed step", "two tensors swapped", "two rows swapped", "one tensor missing", "stale tied head"]


def bench():
    spec = importlib.util.spec_from_file_location("publish_benchmark", BENCHMARK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def results(request, tmp_path_factory):
    """One engine of each dtype with full weights, one with adapters: each in a process of its own."""
    model = str(make_model(tmp_path_factory.mktemp("publish") / "model", layers=2, width=64))
    case = {"model": model, "dtype": request.param}
    full = bench().in_process({**case, "publishes": 20, "faults": True}, timeout_s=140)
    adapters = bench().in_process({**case, "lora": True, "publishes": 20, "merges": 1e-3, "merge_publishes": 3}, timeout_s=140)
    return {"full": full, "adapters": adapters}


def test_publishes_without_a_fault_raise_no_alarm(results):
    for kind in ("full", "adapters"):
        assert results[kind]["healthy"]["publishes"] == 20 and results[kind]["healthy"]["alarms"] == []
        assert results[kind]["healthy"]["unread"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_shows_in_what_the_engine_computes_with_one_step_at_1e_6_after_a_good_publish(results, fault):
    before, after = (results["full"]["faults"][name] for name in (f"{fault}, before", fault))
    assert before["found"] == [] and "used" in after["found"] and after["wrong"]


def test_the_same_publishes_without_a_fault_pass(results):
    for name in ("none (control)", "after all (control)"):
        assert results["full"]["faults"][name]["found"] == []


def test_adapters_merged_at_another_scale_or_not_at_all_are_found_after_one_step(results):
    found = {name: (row["found"], row["publish"]) for name, row in results["adapters"]["merges"].items()}
    assert found.pop("right (control)") == ([], 2)
    assert len(found) == 3 and all("merge" in layers and publish == 1 for layers, publish in found.values())
