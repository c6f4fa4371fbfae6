"""A reward behind HTTP, with a real server on a free port: verdicts, tokens, limits, and a client that tries again."""

import asyncio
import contextlib
import gzip
import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import cloudpickle
import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from rlft.actors.reward import RewardWorker
from rlft.errors import ConfigError, RewardError
from rlft.rewards import http
from rlft.rewards.adapters.openrlhf import OpenRLHFServer
from rlft.rewards.grader import Scorer, spoken
from rlft.rewards.http import HttpReward, is_loopback
from rlft.rewards.wire import encode_groups
from rlft.runs import connections, serve_reward
from rlft.runs.serve_reward import listen, read_token, serve
from rlft.types import Completion, Group, Task, Trajectory, Turn

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file

TASK = Task("1", ({"role": "user", "content": "2+2="},), "4")
TOKEN = "a-token-of-the-tests"
MAX_BYTES = 20_000


def group(*texts):
    return Group("g", tuple(spoken(TASK, text) for text in texts))


def right(task, trajectory):
    if trajectory.text == "raise":
        raise ValueError("no such shape")
    while trajectory.text == "hang":
        pass
    return float(trajectory.text == task.answer), f"{trajectory.num_sampled} tokens"


def serving(then, reward=right, token=TOKEN, timeout_s=30.0):
    """What `then(url)` gives while a server runs."""

    async def main():
        url = asyncio.get_running_loop().create_future()
        listener = listen("127.0.0.1", 0, token)
        server = asyncio.create_task(serve(reward, listener, token, 1, timeout_s, MAX_BYTES, url.set_result))
        await asyncio.wait([server, url], return_when=asyncio.FIRST_COMPLETED)
        try:
            return await then(await url if url.done() else await server)
        finally:
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server

    return asyncio.run(asyncio.wait_for(main(), 120))


async def score(url, of, **options):
    scorer = HttpReward(url=url, **options)
    await scorer.start()
    try:
        return await scorer.score(of)
    finally:
        await scorer.close()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_THE_TESTS", TOKEN)
    return {"token_env": "TOKEN_OF_THE_TESTS"}


def test_values_feedback_and_errors_come_back_in_order(token):
    sampled = Turn([1], Completion([5, 6, 7], [0.0] * 3, "stop", 0), {"role": "assistant", "content": "5"}, [0, 1, 1, 1])
    mixed = Group("g", (*group("4", "raise").trajectories, Trajectory(TASK, 2, (sampled,), "completed", "g", feedback="from before")))
    good, bad, wrong = serving(lambda url: score(url, mixed, **token))
    assert (good, wrong) == ((1.0, "0 tokens"), (0.0, "3 tokens"))
    assert isinstance(bad, RewardError) and "ValueError: no such shape" in str(bad)


def test_a_hanging_reward_is_killed_on_the_server_and_the_others_are_graded(token):
    good, bad = serving(lambda url: score(url, group("4", "hang"), **token), timeout_s=0.5)
    assert good == (1.0, "0 tokens") and "within its limit of 0.5 s" in str(bad)


def test_a_run_pays_what_the_server_says(token):
    async def run(url):
        worker = RewardWorker({"far": {"fn": HttpReward(url=url, **token), "weight": 2.0}}, 1, 30.0)
        try:
            return (await worker.grade([group("4", "5", "raise")]))[0].trajectories
        finally:
            await worker.close()

    first, second, lost = serving(run)
    assert (lost.status, lost.ungraded) == ("failed", {"far": "ungradable"})
    assert (first.reward, first.parts, first.feedback) == (2.0, {"far": 1.0}, "0 tokens")
    assert (second.reward, second.parts) == (0.0, {"far": 0.0})


def test_requests_that_are_refused_say_why(token):
    async def ask(url):
        body = encode_groups([group("4")])
        auth = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient() as client:
            answers = [
                await client.post(url, content=body),
                await client.post(url, content=body, headers={"Authorization": f"Bearer {TOKEN}x"}),
                await client.post(url, content=body, headers={"Authorization": TOKEN}),
                await client.post(url, content=b"x" * (MAX_BYTES + 1), headers=auth),
                await client.post(url, content=b"{", headers=auth),
                await client.post(url, content=b"[" * 15000, headers=auth),
                await client.post(url, content=b'{"version": NaN}', headers=auth),
                await client.post(url, content=b'{"version": 1}', headers=auth),
                await client.get(url, headers=auth),
                await client.post(url.replace("/grade", "/else"), content=body, headers=auth),
                await client.get(url.replace("/grade", "/health")),
                await client.get(url.replace("/grade", "/docs")),
                await client.post(url, content=body, headers=auth),
            ]
        return [(answer.status_code, answer.text) for answer in answers]

    answers = serving(ask)
    assert [status for status, _ in answers] == [401, 401, 401, 413, 400, 400, 400, 422, 405, 404, 200, 404, 200]
    assert "the right one" in answers[0][1] and "larger than 20000 bytes" in answers[3][1] and "groups: Field required" in answers[7][1]
    assert answers[-1][1] == '{"verdicts": [[{"value": 1.0, "feedback": "0 tokens"}]]}'
    assert not any(TOKEN in text for _, text in answers)


def test_a_refusal_is_told_without_trying_again(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_THE_TESTS", "wrong")
    with pytest.raises(RewardError, match="status 401: .*bearer token"):
        serving(lambda url: score(url, group("4"), token_env="TOKEN_OF_THE_TESTS", retries=1000))
    monkeypatch.delenv("TOKEN_OF_THE_TESTS")
    with pytest.raises(RewardError, match="'TOKEN_OF_THE_TESTS' is not set"):
        asyncio.run(score("http://localhost:1/grade", group("4"), token_env="TOKEN_OF_THE_TESTS"))


def test_rewards_that_cannot_be_loaded_end_the_server_at_once():
    class Broken:
        def __reduce__(self):
            return (int, ("no number",))

        def __call__(self, task, trajectory):
            return 1.0

    with pytest.raises(RewardError, match="cannot be loaded"):
        serving(lambda url: score(url, group("4")), reward=Broken())


# --- who may listen, and with what token


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)])
def test_loopback_addresses_are_known(host, own):
    assert is_loopback(host) is own
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_without_a_token_nobody_else_is_listened_to(host):
    with pytest.raises(ConfigError, match="--token-env or --token-file"):
        listen(host, 0, "")
    listen("127.0.0.1", 0, "").close()
    with contextlib.closing(listen("0.0.0.0", 0, TOKEN)) as other, pytest.raises(ConfigError, match="cannot listen on"):
        listen("0.0.0.0", other.getsockname()[1], TOKEN)


def test_a_token_comes_from_a_variable_or_a_file(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "empty").write_text("\n")
    assert read_token("TOKEN_OF_THE_TESTS", None) == read_token("", tmp_path / "token") == TOKEN
    assert read_token("", None) == ""
    for env, file, said in [("NO_SUCH_TOKEN", None, "no token"), ("", tmp_path / "empty", "no token"), ("", tmp_path / "x", "no such")]:
        with pytest.raises(ConfigError, match=said):
            read_token(env, file)
    with pytest.raises(ConfigError, match="not both"):
        read_token("A", tmp_path / "token")


@pytest.mark.parametrize("url", ["localhost:1/grade", "ftp://x/y", "http://", "http://user:secret@host/grade"])
def test_an_address_that_cannot_be_used_is_refused_at_once(url):
    assert isinstance(HttpReward(url="http://host/grade"), Scorer)
    for scorer in (HttpReward, OpenRLHFServer):
        with pytest.raises(ConfigError) as caught:
            scorer(url=url)
        assert "secret" not in str(caught.value)


# --- other servers


@contextlib.asynccontextmanager
async def served(app):
    """The address of an app that runs."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def openrlhf_app(failures=0, status=503):
    app, seen = FastAPI(), []

    @app.post("/get_reward")
    async def get_reward(request: Request):
        data = await request.json()
        seen.append(data)
        if len(seen) <= failures:
            return JSONResponse({"detail": "busy"}, status)
        rewards = [float(query.endswith(label)) for query, label in zip(data["query"], data["labels"], strict=True)]
        return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}})

    @app.post("/elsewhere")
    async def elsewhere():
        return RedirectResponse("/get_reward", 307)

    @app.post("/text")
    async def text():
        return JSONResponse({"scores": []})

    return app, seen


def asking(app, path="/get_reward", **options):
    async def main():
        async with served(app) as address:
            scorer = OpenRLHFServer(url=address + path, **options)
            await scorer.start()
            try:
                return await scorer.score(group("4", "5"))
            finally:
                await scorer.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_a_server_of_openrlhf_is_asked_as_openrlhf_asks_it():
    app, seen = openrlhf_app()
    assert asking(app) == [(1.0, "score = 1\ndummy_scores = 1"), (0.0, "score = 0\ndummy_scores = 0")]
    assert seen == [{"query": ["2+2=\n4", "2+2=\n5"], "prompts": ["2+2=\n"] * 2, "labels": ["4", "4"]}]


def test_what_may_go_better_is_tried_again_and_the_rest_is_not():
    app, seen = openrlhf_app(failures=2)
    assert asking(app, retries=2)[0][0] == 1.0 and len(seen) == 3
    app, seen = openrlhf_app(failures=2)
    with pytest.raises(RewardError, match="status 503: .*busy"):
        asking(app, retries=1)
    assert len(seen) == 2
    app, seen = openrlhf_app(failures=1, status=400)
    with pytest.raises(RewardError, match="status 400"):
        asking(app)
    assert len(seen) == 1


def test_a_redirect_or_an_answer_of_another_form_is_an_error():
    with pytest.raises(RewardError, match="status 307"):
        asking(openrlhf_app()[0], "/elsewhere")
    with pytest.raises(RewardError, match="expected 'rewards'"):
        asking(openrlhf_app()[0], "/text")


def test_a_server_that_is_not_there_or_does_not_answer_is_an_error():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RewardError, match="ReadTimeout|no answer within"):
            asyncio.run(score(f"http://127.0.0.1:{port}/grade", group("4"), request_timeout_s=0.2, retries=0))
    with pytest.raises(RewardError, match="ConnectError"):
        asyncio.run(score(f"http://127.0.0.1:{port}/grade", group("4"), retries=1))


@pytest.mark.parametrize(("path", "message"), [("/large", "an answer of more than 10000 bytes"), ("/endless", "more than 10000 bytes"),
    ("/bomb", "compressed as 'gzip'"), ("/error", "an answer of more than 10000 bytes")])
def test_an_answer_is_read_up_to_a_limit(monkeypatch, path, message):
    monkeypatch.setattr(http, "MAX_ANSWER", 10_000)
    app, _ = openrlhf_app()

    @app.post("/large")
    @app.post("/error")
    async def large(request: Request):
        return JSONResponse({"rewards": [0.0, 0.0], "more": "x" * 10_000}, 200 if "large" in str(request.url) else 400)

    @app.post("/endless")
    async def endless():
        return StreamingResponse(itertools.repeat(b" " * 1000))

    @app.post("/bomb")
    async def bomb():
        return Response(gzip.compress(b" " * 10**7), headers={"Content-Encoding": "gzip"})

    with pytest.raises(RewardError, match=message):
        asking(app, path, retries=0)
    assert asking(app) == [(1.0, "score = 1\ndummy_scores = 1"), (0.0, "score = 0\ndummy_scores = 0")]  # the control


async def connected(url):
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def test_connections_that_say_nothing_do_not_keep_others_out(token):
    async def ask(url):
        idle = [await connected(url) for _ in range(300)]
        try:
            return await score(url, group("4"), retries=0, **token)
        finally:
            for _, writer in idle:
                writer.close()

    assert serving(ask) == [(1.0, "0 tokens")]


@pytest.mark.parametrize("said", [b"", b"POST /grade HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_connection_ends_where_no_header_comes(monkeypatch, said):
    monkeypatch.setattr(connections, "HEADER_S", 0.3)

    async def ask(url):
        reader, writer = await connected(url)
        writer.write(said)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()

    assert (b"200 OK" in serving(ask)) == (b"health" in said)


def test_a_request_may_take_longer_than_a_header(monkeypatch, token):
    monkeypatch.setattr(connections, "HEADER_S", 0.2)
    good, bad = serving(lambda url: score(url, group("4", "hang"), **token), timeout_s=1.0)
    assert good == (1.0, "0 tokens") and "within its limit of 1 s" in str(bad)


def test_too_many_requests_at_once_are_told_to_come_back(monkeypatch, token):
    monkeypatch.setattr(serve_reward, "MAX_WAITING", 0)

    async def ask(url):
        with pytest.raises(RewardError, match="status 503.*requests are under way"):
            await score(url, group("4"), retries=0, **token)
        monkeypatch.setattr(serve_reward, "MAX_WAITING", 1)
        return await asyncio.gather(*(score(url, group("4"), retries=3, **token) for _ in range(3)))

    assert serving(ask) == [[(1.0, "0 tokens")]] * 3


def told(task, trajectory):
    return 0.0, ",".join(sorted({name for name in os.environ if name.endswith("OF_THE_TESTS")}))


def test_a_reward_does_not_see_the_token_of_its_server(monkeypatch, token):
    monkeypatch.setenv("RLFT_OF_THE_TESTS", "1")  # the control
    assert serving(lambda url: score(url, group("4"), **token), reward=told) == [(0.0, "RLFT_OF_THE_TESTS")]


# --- the command


def test_the_command_serves_a_function_of_the_users_folder_until_it_is_told_to_stop(tmp_path):
    (tmp_path / "my_rewards.py").write_text("def shout(task, trajectory):\n    return float(trajectory.text.isupper())\n")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-u", "-m", "rlft", "serve-reward", "my_rewards:shout", "--port", "0", "--token-env", "TOKEN_OF_THE_TESTS"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().split()[-1]
            assert asyncio.run(score(url, group("LOUD", "low"), token_env="TOKEN_OF_THE_TESTS")) == [(1.0, ""), (0.0, "")]
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130, -signal.SIGINT)


def test_the_command_refuses_to_be_open_to_all(tmp_path):
    command = [sys.executable, "-m", "rlft", "serve-reward", "exact_match", "--host", "0.0.0.0", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "ConfigError: --host 0.0.0.0" in run.stderr
