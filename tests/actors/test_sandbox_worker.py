"""The sandbox worker on the real sandbox: executions, sessions that outlive their processes, and what it counts."""

import asyncio
import os
import signal
import time

import psutil
import pytest

from rlft.actors.sandbox import SandboxWorker
from rlft.errors import SandboxError
from rlft.sandbox.types import Limits

QUICK = Limits(wall_s=1.0, cpu_s=1.0, memory_mb=256)


def work(do, **options):
    """What `do` returns of a worker, which is closed afterwards."""

    async def main():
        worker = SandboxWorker(QUICK, **options)
        try:
            async with asyncio.timeout(60):
                return await do(worker)
        finally:
            await worker.close()

    return asyncio.run(main())


def alive(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_scripts_and_calls_are_run_and_counted():
    async def do(worker):
        ran = await asyncio.gather(*(worker.run(f"print({i})") for i in range(10)), worker.run("1 / 0"), worker.run("while True: pass"))
        calls = await worker.call("def f(x): return x + 1", [("f", (1,), {}), ("f", ("a",), {})])
        return [r.stdout for r in ran[:10]], [c.value for c in calls], await worker.stats()

    printed, values, stats = work(do, max_executions=2)
    assert printed == [f"{i}\n" for i in range(10)] and values == [2, None]
    assert {key: stats[key] for key in stats if key.startswith("executions/")} == {
        "executions/ok": 11,
        "executions/error": 2,
        "executions/timeout": 1,
    }
    assert stats["queue_s"] > 0 and stats["restarts"] == stats["sessions"] == 0


def test_sessions_keep_their_state_apart():
    async def do(worker):
        ids = [await worker.open_session() for _ in range(5)]
        await asyncio.gather(*(worker.execute(session, f"x = {i}") for i, session in enumerate(ids)))
        found = await asyncio.gather(*(worker.execute(session, "x") for session in ids))
        await worker.close_session(ids[0])
        with pytest.raises(SandboxError, match="no session"):
            await worker.execute(ids[0], "x")
        return [execution.value for execution in found], await worker.stats()

    values, stats = work(do)
    assert values == ["0", "1", "2", "3", "4"]
    assert (stats["sessions"], stats["live"], stats["rebuilt"], stats["executions/ok"]) == (4, 4, 0, 10)


def test_cells_of_one_session_run_one_after_the_other():
    async def do(worker):
        session = await worker.open_session()
        await worker.execute(session, "x = []")
        await asyncio.gather(*(worker.execute(session, f"x.append({i})") for i in range(20)))
        return (await worker.execute(session, "x")).value

    assert work(do, max_executions=4) == str(list(range(20)))


@pytest.mark.slow
def test_a_cell_that_hangs_is_interrupted_and_one_that_will_not_be_is_told_as_a_reset():
    async def do(worker):
        session = await worker.open_session()
        await worker.execute(session, "x = 1")
        hung = await worker.execute(session, "while True: pass")
        kept = await worker.execute(session, "x")
        stubborn = await worker.execute(session, "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass")
        after = await worker.execute(session, "'x' in globals()")
        return hung.status, kept.value, stubborn, after.value, await worker.export_log(session), (await worker.stats())["resets"]

    hung, kept, stubborn, after, log, resets = work(do)
    assert (hung, kept) == ("timeout", "1")
    assert stubborn.status == "timeout" and "session was reset" in stubborn.error
    assert after == "False" and log == ["'x' in globals()"] and resets == 1


def test_only_so_many_processes_of_sessions_live_and_the_others_come_back():
    async def do(worker):
        ids = [await worker.open_session() for _ in range(6)]
        for i, session in enumerate(ids):
            await worker.execute(session, f"x = {i}")
        live = (await worker.stats())["live"]
        values = [(await worker.execute(session, "x")).value for session in ids]
        return live, values, await worker.stats()

    live, values, stats = work(do, max_executions=1, max_sessions=3)
    assert live <= 3 and stats["live"] <= 3 and stats["sessions"] == 6
    assert values == ["0", "1", "2", "3", "4", "5"] and stats["rebuilt"] >= 3


def test_an_idle_session_gives_up_its_process_and_later_its_log():
    async def do(worker):
        session = await worker.open_session()
        await worker.execute(session, "x = 1")
        while (await worker.stats())["live"]:
            await asyncio.sleep(0.01)
        value = (await worker.execute(session, "x")).value
        while (await worker.stats())["sessions"]:
            await asyncio.sleep(0.01)
        with pytest.raises(SandboxError, match="forgotten after 1.5 s"):
            await worker.execute(session, "x")
        return value, (await worker.stats())["rebuilt"]

    assert work(do, idle_s=0.3, forget_s=1.5) == ("1", 1)


def test_sessions_and_scripts_outlive_the_death_of_the_sandbox_server():
    others = psutil.Process().children()

    async def do(worker):
        session = await worker.open_session()
        await worker.execute(session, "x = 41")
        (server,) = alive(set(psutil.Process().children()) - set(others))
        server.send_signal(signal.SIGKILL)
        await until(lambda: not alive([server]))
        cell = await worker.execute(session, "x + 1")
        return cell, (await worker.run("print(1)")).stdout, await worker.stats()

    cell, printed, stats = work(do)
    assert (cell.status, cell.value, printed) == ("ok", "42", "1\n")
    assert "reset" not in cell.error and stats["rebuilt"] == 1 and stats["resets"] == 0


def test_a_log_makes_the_session_again_on_another_worker():
    async def before(worker):
        session = await worker.open_session()
        for cell in ("import random", "x = [1]", "1 / 0", "def f(): return x[-1]", "x.append(f() + 1)"):
            await worker.execute(session, cell)
        return await worker.export_log(session)

    async def after(worker):
        session = await worker.restore(log)
        return (await worker.execute(session, "x, f()")).value, (await worker.stats())["executions/ok"]

    log = work(before)
    assert len(log) == 5
    assert work(after) == ("([1, 2], 2)", 1)


def test_nothing_is_left_after_close():
    others = psutil.Process().children(recursive=True)

    async def do(worker):
        session = await worker.open_session()
        await worker.execute(session, "x = 1")
        return set(psutil.Process().children(recursive=True)) - set(others)

    children = work(do)
    assert children
    until_s = time.monotonic() + 5
    while left := alive(children):
        assert time.monotonic() < until_s, left


def test_a_closed_worker_says_so():
    async def main():
        worker = SandboxWorker()
        await worker.close()
        with pytest.raises(SandboxError, match="was closed"):
            await worker.run("1")

    asyncio.run(main())


@pytest.mark.integration
@pytest.mark.slow
def test_it_is_a_ray_actor():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, namespace=f"sandbox-{os.getpid()}")
    try:
        worker = ray.remote(SandboxWorker).options(num_cpus=1, max_concurrency=100).remote(QUICK)
        ray.get(worker.start.remote(), timeout=120)
        session = ray.get(worker.open_session.remote(), timeout=60)
        for cell in ("x = 1", "x += 1"):  # an async actor does not keep the order of calls in flight
            ray.get(worker.execute.remote(session, cell), timeout=60)
        assert ray.get(worker.execute.remote(session, "x"), timeout=60).value == "2"
        ran = ray.get([worker.run.remote(f"print({i})") for i in range(50)], timeout=60)
        assert [execution.stdout for execution in ran] == [f"{i}\n" for i in range(50)]
        with pytest.raises(SandboxError, match="no session"):
            ray.get(worker.execute.remote("gone", "x"), timeout=60)
        ray.get(worker.close.remote(), timeout=60)
    finally:
        ray.shutdown()
