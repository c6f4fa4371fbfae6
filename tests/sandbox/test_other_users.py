"""The attacks again from where this process is not: as an ordinary user, and as root with an interpreter that others reach."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ["test_programs.py", "test_reach.py", "test_limits.py", "test_sessions.py", "test_refusal.py"]


@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("uid", "tiers"), [(12345, "A,B"), (0, "B")], ids=["user", "root"])
@pytest.mark.slow
def test_every_attack_fails_there_too(uid, tiers, why_not):
    tiers = ",".join(tier for tier in tiers.split(",") if uid or why_not(tier))
    if not tiers:
        pytest.skip("this process runs them itself")
    with tempfile.TemporaryDirectory(prefix="rlft-tests-") as folder:
        os.chmod(folder, 0o777)
        command = [sys.executable, str(HERE / "as_user.py"), str(uid), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--basetemp", f"{folder}/base", "--rootdir", str(HERE.parents[1]), *[str(HERE / name) for name in FILES]]
        env = {**os.environ, "RLFT_TEST_SANDBOX_TIERS": tiers, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=800, env=env, cwd=HERE.parents[1])
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) >= 30 * len(tiers.split(","))
