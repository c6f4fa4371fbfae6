"""What a job would not find is refused before anything is sent, and an address is told what it is for."""

import http.server
import sys
import threading
from pathlib import Path

import pytest

from rlft.config import validate
from rlft.errors import ConfigError, DataError
from rlft.runs import joining, submit
from rlft.runs.joining import check_address, prepare_to_join
from rlft.runs.submit import MAX_MB, Job, check_sent, sent_files, submit_job


@pytest.fixture
def project(tmp_path):
    """A working directory with files that are sent, and some that are not."""
    folder = tmp_path / "project"
    for name in ("tasks.jsonl", "models/m/config.json", "runs/starter/config.json", ".venv/x.py", "pack/.venv/x.py", "big.bin", "a/b.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    (folder / ".gitignore").write_text("big.bin\n")
    (tmp_path / "outside.jsonl").touch()
    return folder


def config(**changes):
    return validate({"model": "models/m", "run_dir": "/shared/run", "data": {"source": "tasks.jsonl"}, **changes})


def test_what_ray_would_send_is_told_by_name_and_size(project):
    sent = sent_files(project)
    assert {str(path) for path in sent} == {"tasks.jsonl", "models/m/config.json", "a/b.py", ".gitignore"}
    assert sent[Path("tasks.jsonl")] == 4


def test_a_job_that_finds_its_files_is_let_through(project):
    sent = sent_files(project)
    check_sent(config(), project, sent)
    check_sent(config(model="Qwen/Qwen3-0.6B"), project, sent)
    check_sent(config(model="/shared/model", data={"source": "my_tasks:make"}), project, sent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_dir": "runs/x"}, "run_dir 'runs/x' would lie in the job's own copy .*--set run_dir=/shared/run"),
        ({"model": "runs/starter"}, "model 'runs/starter' is not sent: .*is left out"),
        ({"model": "./none"}, "model './none' is not sent: .*does not lie there"),
        ({"data": {"source": "../outside.jsonl"}}, r"data.source '../outside.jsonl' is not sent: .*lies outside"),
        ({"data": {"source": "big.bin"}}, "data.source 'big.bin' is not sent: .*is left out"),
        ({"eval": {"data": {"source": "runs/starter/config.json"}}}, "eval.data.source .* is not sent"),
        ({"critic": {"model": "runs/starter"}, "algorithm": {"name": "ppo"}}, "critic.model 'runs/starter' is not sent"),
        ({"reward": {"reward_model": {"model": "runs/starter"}}}, "reward.reward_model.model 'runs/starter' is not sent"),
    ],
)
def test_what_a_job_would_not_find_or_would_lose_is_refused(project, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_sent(config(**changes), project, sent_files(project))


def test_more_than_ray_takes_is_refused_with_the_largest_files(project):
    sent = {Path("tasks.jsonl"): 2**20, Path("models/m/weights.safetensors"): MAX_MB * 2**20}
    with pytest.raises(ConfigError, match=f"has {MAX_MB + 1} MiB to send.*the largest: models/m/weights.safetensors"):
        check_sent(config(model="models/m"), project, sent)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "no cluster to submit to: give its dashboard, --address http://head:8265, or set RAY_API_SERVER_ADDRESS"),
        ("ray://head:10001", "ray://head:10001 takes runs that join: `rlft train FILE --address ray://head:10001`"),
    ],
)
def test_an_address_that_takes_no_jobs_is_told_what_it_takes(write_run, monkeypatch, address, message):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=message):
        submit_job(write_run, address, Job(working_dir=Path(write_run).parent))


def test_the_environment_names_the_dashboard_unless_the_command_line_does(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:8265/")
    assert submit._dashboard(None) == "http://there:8265"
    assert submit._dashboard("here:8265") == "http://here:8265"


def test_only_a_training_run_goes_on(write_run):
    with pytest.raises(ConfigError, match="--resume goes on with a run of `rlft train`, not of `rlft sft`"):
        submit_job(write_run, "http://head:8265", Job(resume=True, command="sft", working_dir=Path(write_run).parent))


@pytest.fixture
def write_run(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "m/x"\nrun_dir = "/shared/run"\ndata.source = "a/b"\n')
    return str(file)


RUN = """model = "/shared/model"
run_dir = "/shared/run"
data.source = "tasks.jsonl"
reward = { "rewards_of_a_job:right" = 1.0 }
"""


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Submits a run file in a folder that is not the current one, to a dashboard that nobody may ask."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "run.toml").write_text(RUN)
    (folder / "tasks.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}')
    (folder / "rewards_of_a_job.py").write_text("def right(task, trajectory):\n    return 1.0\n")
    (folder / "lacking_of_a_job.py").write_text("import no_such_library\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(submit, "_wants_token", lambda address: (_ for _ in ()).throw(Asked))

    def run(*overrides, **options):
        return submit_job(str(folder / "run.toml"), "http://head:8265", Job(overrides, working_dir=folder, **options))

    yield run
    for name in ("rewards_of_a_job", "lacking_of_a_job"):
        sys.modules.pop(name, None)


class Asked(Exception):
    """Every check of this machine has passed, and the cluster would be asked now."""


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["run_dir=runs/x"], {}, "run_dir 'runs/x' would lie in the job's own copy"),
        (["model=./none"], {}, "model './none' is not sent: .*does not lie there"),
        (["data.source=./none.jsonl"], {}, "data.source './none.jsonl' is not sent"),
        (["data.source=none.jsonl"], {}, r"\[data\] .*no such file"),
        (["data.prompt=promt"], {}, "no row has the field 'promt'"),
        (["reward={exact_mach = 1.0}"], {}, "did you mean 'exact_match'"),
        (['reward={"rewards_of_a_job:rigth" = 1.0}'], {}, "did you mean 'right'"),
        (['reward={"reward_of_a_job:right" = 1.0}'], {}, "did you mean 'rewards_of_a_job'"),
        (["env.name=single_trun"], {}, "did you mean 'single_turn'"),
        (["algorithm={name = 'grpo', clip_high = -1.0}"], {}, "clip_high"),
        (["chat_template=none.jinja"], {}, "chat_template: no file 'none.jinja'"),
        (["eval.every=5"], {}, "eval.every needs eval.data.source"),
        ([], {"command": "eval"}, "eval.data.source is not set"),
        ([], {"command": "dpo"}, r"\[reward\] does not apply to training on given pairs"),
        ([], {"overwrite": True, "resume": True}, "ask for one of them"),
    ],
    ids=str,
)
def test_a_job_that_would_fail_at_its_start_is_refused_before_the_cluster_is_asked(submitted, overrides, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        submitted(*overrides, **options)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.source=/shared/tasks.jsonl", "chat_template=/shared/t.jinja"],
        ["model=owner/name", "data.source=owner/name"],
        ['reward={"lacking_of_a_job:right" = 1.0}'],
        ['reward={"elsewhere_only.rewards:right" = 1.0}', "env.name=elsewhere_only.envs:Env"],
    ],
    ids=str,
)
def test_what_only_the_cluster_may_have_is_left_to_it(submitted, overrides):
    with pytest.raises(Asked):
        submitted(*overrides)


@pytest.fixture
def web_server():
    """The address of something that speaks HTTP and is no cluster."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_dashboard_is_no_address_to_join(web_server):
    with pytest.raises(ConfigError, match="that is the dashboard, which takes jobs: use `rlft submit FILE --address http://head:8265`"):
        prepare_to_join("http://head:8265")
    with pytest.raises(ConfigError, match=f"no cluster answers there .*`rlft submit FILE --address http://{web_server}`"):
        prepare_to_join(web_server)
    assert not joining.is_cluster(web_server)


def test_what_ray_finds_itself_is_left_to_it():
    prepare_to_join("auto")
    assert check_address("auto") == "auto"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head", "--address head: no port is named; give HOST:PORT, such as head:6379"),
        ("10.0.0.1", "give HOST:PORT, such as head:6379"),
        ("head:", "give HOST:PORT, such as head:6379"),
        (":6379", "give HOST:PORT, such as head:6379"),
        ("ray://head", "--address ray://head: no port is named; give HOST:PORT, such as ray://head:10001"),
        ("https://head", "that is the dashboard"),
    ],
)
def test_an_address_that_no_run_joins_is_told_before_anybody_is_asked(monkeypatch, address, message):
    for check in (check_address, prepare_to_join):
        with pytest.raises(ConfigError, match=message):
            check(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="RAY_ADDRESS"):
        check_address(None)
    for good in ("head:6379", "[::1]:6379", "ray://head:10001", "local"):  # the control; what is typed counts, and not the environment
        assert check_address(good) == good


@pytest.mark.parametrize(
    ("variables", "file", "token"),
    [
        ({"RAY_AUTH_TOKEN": "a", "RAY_AUTH_TOKEN_PATH": "elsewhere"}, True, "a"),
        ({"RAY_AUTH_TOKEN_PATH": "elsewhere"}, True, "c"),
        ({}, True, "b"),
        ({}, False, ""),
    ],
)
def test_a_token_is_where_ray_looks_for_it(tmp_path, monkeypatch, variables, file, token):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "elsewhere").write_text("c\n")
    (tmp_path / ".ray").mkdir()
    if file:
        (tmp_path / ".ray" / "auth_token").write_text("b\n")
    assert joining._token() == token
