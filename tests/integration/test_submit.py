"""Clusters that are there already: the run as a Ray job, and runs that join with an address."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest

from rlft.recipes.starter import make_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BIN = Path(sys.prefix) / "bin"
TOKEN = "0123456789abcdef" * 4
STEPS = 2


def free_ports(number):
    """Ports that are free now, held together until all are known."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environment(home, **changes):
    """A shell on the cluster: its own home, no Ray settings but these, its Python first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(BIN), kept["PATH"]])
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # what DeepSpeed has compiled already
    own = {"PATH": path, "HOME": str(home), "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**kept, **own, **changes}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A one-node cluster with a dashboard and a token; gives the addresses and the home folder that holds the token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    names = [
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "ray-client-server-port",
    ]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="rlft-", dir="/tmp") as temp:  # sockets live there, and their paths must be short
        options = ["--num-cpus", "4", "--node-ip-address", "127.0.0.1", "--temp-dir", temp]
        options = [*options, *(part for name, port in ports.items() for part in (f"--{name}", str(port)))]
        env = environment(home)
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *options], env=env, cwd=temp, stdout=subprocess.PIPE, text=True
        )
        try:
            said = list(itertools.takewhile(lambda line: "Ray runtime started" not in line, process.stdout))
            assert process.poll() is None, "".join(said)
            yield f"http://127.0.0.1:{ports['dashboard-port']}", f"127.0.0.1:{ports['port']}", home
        finally:
            mine = [process, *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            process.wait(60)
            left = [p for p in mine[1:] if p.is_running()]
            for each in left:
                each.kill()
            psutil.wait_procs(left, 30)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's folder: model, data, a reward of their own and a run file, all named by relative paths."""
    folder = tmp_path_factory.mktemp("project")
    make_model(folder / "model", layers=2, width=64)
    (folder / "tasks.jsonl").write_text("\n".join(json.dumps({"prompt": f"{n}+{n}=", "answer": str(2 * n)}) for n in range(8)))
    (folder / "my_rewards.py").write_text("def brief(task, trajectory, *, limit=4):\n    return float(trajectory.num_sampled <= limit)\n")
    (folder / "run.toml").write_text(
        f"""
        model = "model"
        steps = {STEPS}
        tasks_per_step = 4
        data.source = "tasks.jsonl"
        reward = {{ "my_rewards:brief" = {{ limit = 6 }} }}
        rollout = {{ group_size = 4, max_tokens = 8, max_model_len = 64, max_num_seqs = 16, memory = 0.25 }}
        learner = {{ lr = 1e-3, max_tokens_per_micro_batch = 256 }}
        """
    )
    return folder


def command_line(*arguments):
    return [sys.executable, "-m", "rlft", *map(str, arguments)]


def rlft(cwd, home, *arguments, **changes):
    """The command in a shell of its own."""
    return subprocess.run(command_line(*arguments), cwd=cwd, env=environment(home, **changes), capture_output=True, text=True, timeout=400)


def listen():
    """Undo what a shell does to its background jobs: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def started(cwd, home, *arguments, **streams):
    """The command while it runs."""
    process = subprocess.Popen(command_line(*arguments), cwd=cwd, env=environment(home), text=True, preexec_fn=listen, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


@contextlib.contextmanager
def following(cwd, home, *arguments):
    """The command while it follows a job. Gives the process, and the job's name as it was printed."""
    with started(cwd, home, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        line = next((line for line in process.stdout if line.startswith("job raysubmit")), None)
        assert line, process.stderr.read()
        yield process, line.split()[1].rstrip(":")


@contextlib.contextmanager
def relay(address):
    """A way to `address` that can be cut: gives its own address, and what cuts it."""
    host, port = address.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    open_now = [listener]

    def copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                open_now.extend([near, far])
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    def cut():
        for each in open_now:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", cut
    finally:
        cut()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def jobs(cluster):
    """What the cluster's jobs API lists: submitted jobs, and drivers that joined."""
    dashboard, _, _ = cluster
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def state(cluster, job):
    return next(known["status"] for known in jobs(cluster) if known["submission_id"] == job)


def test_a_submitted_run_trains_inside_the_cluster_and_succeeds(cluster, project, tmp_path):
    dashboard, _, home = cluster
    done = rlft(project, home, "submit", "run.toml", "--address", dashboard, "--set", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"step {STEPS}/{STEPS}" in done.stdout and "SUCCEEDED" in done.stdout
    folder = tmp_path / "run"
    assert len([row for row in metrics(folder) if "reward/mean" in row]) == STEPS
    assert json.loads((folder / "summary.json").read_text())["steps"] == STEPS
    assert (folder / "checkpoints" / f"step-{STEPS:06d}" / "model.safetensors").is_file()
    (job,) = [job for job in jobs(cluster) if job["submission_id"] and job["submission_id"] in done.stdout]
    assert job["status"] == "SUCCEEDED" and job["driver_info"]["id"]  # its driver is the cluster's own: no second Ray was started


def test_a_job_that_fails_tells_why_and_fails_the_command(cluster, project, tmp_path):
    dashboard, _, home = cluster
    overrides = ["--set", "model=/nowhere/model", "--set", f"run_dir={tmp_path / 'run'}"]
    done = rlft(project, home, "submit", "run.toml", "--address", dashboard, *overrides)
    assert done.returncode == 1
    assert "ConfigError: model '/nowhere/model': no such folder" in done.stdout and "FAILED" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_wrong_run_file_is_refused_before_anything_is_sent(cluster, project, tmp_path):
    dashboard, _, home = cluster
    before = len(jobs(cluster))
    elsewhere = tmp_path / "run.toml"
    elsewhere.write_text('model = "model"\n')
    for arguments, message in [
        (["run.toml", "--set", "stepz=3"], "ConfigError: stepz: unknown key; did you mean 'steps'?"),
        (["run.toml"], "ConfigError: run_dir 'runs/run' would lie in the job's own copy"),
        (["run.toml", "--set", f"run_dir={tmp_path}", "--set", "model=./nowhere"], "ConfigError: model './nowhere' is not sent"),
        (["none.toml"], "ConfigError: no run file 'none.toml'"),
        ([elsewhere], "lies outside --working-dir"),
        (["run.toml", "--set", f"run_dir={tmp_path}", "--command", "eval"], "ConfigError: eval.data.source is not set"),
        (["run.toml", "--set", f"run_dir={tmp_path}", "--set", "algorithm.name=gpro"], "unknown name 'gpro'; did you mean 'grpo'"),
        (["run.toml", "--command", "trian"], "ConfigError: --command 'trian': expected one of train, sft, dpo, train-rm, eval"),
    ]:
        done = rlft(project, home, "submit", *arguments, "--address", dashboard)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert len(jobs(cluster)) == before


def test_an_address_without_a_cluster_is_told_in_one_line(project, tmp_path):
    (port,) = free_ports(1)
    done = rlft(project, tmp_path, "submit", "run.toml", "--set", f"run_dir={tmp_path / 'run'}", "--address", f"http://127.0.0.1:{port}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ConfigError: no Ray jobs API at http://127.0.0.1:{port}: ") and "http://head:8265" in done.stderr


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_TOKEN": "f" * 64}], ids=["missing", "wrong"])
def test_a_cluster_that_wants_a_token_says_where_to_put_it(cluster, project, tmp_path, token):
    dashboard, _, _ = cluster
    done = rlft(project, tmp_path, "submit", "run.toml", "--set", f"run_dir={tmp_path}", "--address", dashboard, **token)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("ConfigError: ") and "RAY_AUTH_TOKEN" in done.stderr and "~/.ray/auth_token" in done.stderr


def test_a_run_joins_a_cluster_and_leaves_it_running(cluster, project, tmp_path):
    _, address, home = cluster
    before = {job["job_id"] for job in jobs(cluster)}
    overrides = [f"run_dir={tmp_path / 'run'}", "reward={}", "rollout={}", f"steps={STEPS}"]
    arguments = ["run.toml", "--address", address, *(part for override in overrides for part in ("--set", override))]
    done = rlft(project, home, "sft", *arguments)  # the token lies in ~/.ray/auth_token
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(metrics(tmp_path / "run")) == STEPS
    (joined,) = [job for job in jobs(cluster) if job["job_id"] not in before]
    assert joined["type"] == "DRIVER"


def actors_of(home):
    """Learner ranks that run on the cluster of that home folder."""

    def mine(process):
        with contextlib.suppress(psutil.Error):
            return "ray::LearnerRank" in " ".join(process.cmdline()) and process.environ().get("HOME") == str(home)
        return False

    return [process for process in psutil.process_iter() if mine(process)]


@pytest.mark.nightly
def test_ctrl_c_ends_a_run_that_joined_with_its_actors_and_leaves_the_cluster_running(cluster, project, tmp_path):
    _, address, home = cluster
    overrides = [f"run_dir={tmp_path / 'run'}", "reward={}", "rollout={}", "steps=100000"]
    arguments = ["sft", "run.toml", "--address", address, *(part for override in overrides for part in ("--set", override))]
    with (tmp_path / "said").open("w+") as said, started(project, home, *arguments, stdout=said, stderr=said) as process:
        actors = []
        while not actors or not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None, said.seek(0) or said.read()
            actors = actors_of(home)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert psutil.wait_procs(actors, 5)[1] == []
        said.seek(0)
        assert said.read().splitlines()[-1].startswith("stopped by Ctrl-C after step ")
    assert {job["status"] for job in jobs(cluster) if job["type"] == "DRIVER"} <= {"SUCCEEDED", "FAILED", "RUNNING"}  # it answers


def test_joining_where_there_is_no_cluster_is_told_in_one_line(project, tmp_path):
    (port,) = free_ports(1)
    plain = ["--set", "reward={}", "--set", "rollout={}", "--set", f"run_dir={tmp_path / 'run'}"]
    done = rlft(project, tmp_path, "sft", "run.toml", *plain, "--address", f"127.0.0.1:{port}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ConfigError: cannot join a Ray cluster at 127.0.0.1:{port}: ")
    assert "check the address, such as head:6379" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "wants a token, and there is none: put the cluster's token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refuses the token: put the cluster's token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "disabled"}, "wants a token, and RAY_AUTH_MODE is 'disabled'"),
    ],
    ids=["missing", "wrong", "turned off"],
)
def test_joining_without_the_token_is_told_in_one_line(cluster, project, tmp_path, changes, message):
    _, address, _ = cluster
    plain = ["--set", "reward={}", "--set", "rollout={}", "--set", f"run_dir={tmp_path / 'run'}"]
    done = rlft(project, tmp_path, "sft", "run.toml", *plain, "--address", address, **changes)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"ConfigError: {address} ") and message in done.stderr


def test_each_of_a_clusters_two_addresses_is_told_from_the_other(cluster, project, tmp_path):
    dashboard, address, home = cluster
    plain = ["--set", "reward={}", "--set", "rollout={}", "--set", f"run_dir={tmp_path / 'run'}"]
    joins = rlft(project, home, "sft", "run.toml", *plain, "--address", dashboard)
    assert (
        joins.returncode == 1 and f"that is the dashboard, which takes jobs: use `rlft submit FILE --address {dashboard}`" in joins.stderr
    )
    submits = rlft(project, home, "submit", "run.toml", "--set", f"run_dir={tmp_path / 'run'}", "--address", address)
    assert submits.returncode == 1 and f"where runs join: `rlft train FILE --address {address}`" in submits.stderr


def test_a_job_that_is_not_waited_for_is_found_by_what_was_printed(cluster, project, tmp_path):
    dashboard, _, home = cluster
    fails = ["--set", "eval.data.source=tasks.jsonl", "--set", "model=/nowhere/model"]
    given = [*fails, "--set", f"run_dir={tmp_path / 'run'}", "--command", "eval", "--no-wait"]
    done = rlft(project, home, "submit", "run.toml", *given, RAY_API_SERVER_ADDRESS=dashboard, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    look = done.stdout.partition("look at it with `")[2].partition("`")[0]
    log = subprocess.run(["bash", "-c", look], env=environment(home), capture_output=True, text=True, timeout=200)
    assert "ConfigError: model '/nowhere/model': no such folder" in log.stdout


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_look_and_stop(cluster, project, tmp_path):
    dashboard, _, home = cluster
    with following(project, home, "submit", "run.toml", "--set", f"run_dir={tmp_path / 'run'}", "--address", dashboard) as (process, job):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=5)
    look = "look at it with `RAY_AUTH_MODE=token ray job logs"
    assert process.returncode == 130 and said.startswith(f"stopped by Ctrl-C: job {job} goes on; {look}")
    assert state(cluster, job) in ("PENDING", "RUNNING")
    stops = said.partition("stop it with `")[2].partition("`")[0]
    assert subprocess.run(["bash", "-c", stops], env=environment(home), capture_output=True, timeout=100).returncode == 0
    assert state(cluster, job) == "STOPPED"


def test_a_lost_connection_leaves_the_job_alone_and_says_how_to_look_again(cluster, project, tmp_path):
    dashboard, _, home = cluster
    with relay(dashboard.removeprefix("http://")) as (address, cut):
        given = ["--set", f"run_dir={tmp_path / 'run'}", "--address", address]
        with following(project, home, "submit", "run.toml", *given) as (process, job):
            cut()
            _, said = process.communicate(timeout=100)
    assert process.returncode == 1 and said.count("\n") == 1 and said.startswith(f"lost the connection to http://{address} ")
    assert f"job {job} goes on without it: `RAY_AUTH_MODE=token ray job logs --follow {job} --address http://{address}`" in said
    assert state(cluster, job) in ("PENDING", "RUNNING")
    stop = [BIN / "ray", "job", "stop", job, "--address", dashboard]
    assert subprocess.run(stop, env={**environment(home), "RAY_AUTH_MODE": "token"}, capture_output=True, timeout=100).returncode == 0
