"""A reader follows the README and the quickstart in a fresh folder, word for word, and the policy learns."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def bash_blocks(page, heading, end):
    """The bash blocks of the sections from one heading to before another."""
    text = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition(f"\n## {end}\n")[0]
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def checkout(folder):
    """A folder that looks like a checkout after `make setup`."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    return folder


def follow(blocks, folder, timeout_s):
    """Type the blocks into one shell in a checkout. Returns what it prints."""
    script = "set -e\n" + "".join(blocks)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    typed = ["bash", "-c", script]
    ran = subprocess.run(typed, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]
    return ran.stdout


def metrics(run_folder, name):
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def rise(values, width=3):
    """How much higher the last values are than the first, by their means."""
    return sum(values[-width:]) / width - sum(values[:width]) / width


def test_a_rise_is_told_from_noise():
    assert rise([0.5, 0.4, 0.6, 0.5, 0.6, 0.4]) < 0.05 < rise([0.5, 0.4, 0.6, 0.7, 0.8, 0.9])


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A checkout in which the README's blocks were typed one after the other, and what `python train.py` printed."""
    folder = checkout(tmp_path_factory.mktemp("readme"))
    runs = bash_blocks("README.md", "A run is one file", "Plug in your own")
    said = follow([*runs, "python train.py\n"], folder, 600)
    begin, _, _ = runs[0].partition("rlft starter")
    follow([begin, *bash_blocks("README.md", "Plug in your own", "What a run leaves")], folder, 300)
    return folder, said


@pytest.fixture(scope="module")
def runs(walked):
    return walked[0] / "examples" / "additions" / "runs"


@pytest.mark.timeout(900)
def test_what_the_readme_says_works_and_learns(walked, runs):
    before, *_, after = metrics(runs / "run", "eval/exact_match") or metrics(runs / "run", "eval/mean")
    assert after > before + 0.1
    assert rise(metrics(runs / "run", "reward/exact_match")) > 0.1
    assert rise(metrics(runs / "train", "reward/mean")) > 0.1
    assert walked[1].splitlines()[-1] == "20 runs/train/checkpoints/step-000020"


@pytest.mark.timeout(900)
def test_the_environment_and_the_algorithm_of_the_readme_run_as_they_stand(runs):
    assert len(metrics(runs / "tries", "reward/mean")) == len(metrics(runs / "reinforce", "reward/mean")) == 5
    assert max(metrics(runs / "tries", "rollout/turns")) > 1


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_what_the_quickstart_says_works_and_learns(walked, runs):
    blocks = bash_blocks("docs/quickstart.md", "Your own data and reward", "Nothing")
    text = (ROOT / "docs/quickstart.md").read_text()
    files = re.findall(r"^```(?:python|toml)\n# (sums\.\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    saved = [f"cat > {name} <<'END'\n{code}END\n" for name, code in files]
    assert [name for name, _ in files] == ["sums.py", "sums.toml"]
    follow([blocks[0], *saved, *blocks[1:]], walked[0], 600)
    assert rise(metrics(runs / "sums", "reward/exact_match")) > 0.1
    assert rise(metrics(runs / "sums-slow", "reward/exact_match")) > 0.0
    assert json.loads((runs / "sums-eval" / "summary.json").read_text())["eval_mean"] > 0.6


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_what_is_said_of_a_real_model_works_and_learns(tmp_path):
    (block,) = bash_blocks("docs/real-models.md", "The model", "A first run")
    typed, environment_too = block.splitlines()[:2], block.splitlines()[2]
    assert environment_too.startswith("make demo-real")  # what `make` adds is the environment, which is there
    follow(["\n".join(["source .venv/bin/activate", *typed, ""])], checkout(tmp_path), 1450)
    before, *_, after = metrics(tmp_path / "runs" / "sentences", "eval/mean")
    assert after > before + 0.2
