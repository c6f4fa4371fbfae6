"""Where no control group bounds a whole job: its server grants each fork, and shares the memory limit out among its processes.

The kernel asks through seccomp's user notification (seccomp(2), SECCOMP_RET_USER_NOTIF). An address space limit
holds for one process, so the soft limits of all processes of a job are set such that their sum stays within the job's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
CONTINUE = 1
EAGAIN, ENOMEM = 11, 12
CLONE_VM, CLONE_THREAD = 0x100, 0x10000
SETTLED_S = 1.0  # after which a granted fork has happened or failed
ASLEEP_S = 0.02  # the same for one whose task sleeps: a task does not sleep while it forks
MIN_SHARE = 1 << 20


@dataclass
class Family:
    """The processes of one job."""

    pid: int  # the first
    listener: int  # descriptor of the kernel's questions
    processes: int  # limit, threads included
    memory: int  # limit in bytes, beyond what the first process starts with
    granted: list[tuple[float, int]] = field(default_factory=list)  # (time, task) of forks that may not have happened yet
    split: bool = False  # shares are out that could be handed back


class Forks:
    """Answers for all jobs of a server."""

    def __init__(self, proc: int, base_bytes: int, clones: Sequence[int]) -> None:
        """`proc`: descriptor of the host's /proc; `clones`: numbers of the calls whose first argument has flags."""
        self.proc, self.base, self.clones = proc, base_bytes, frozenset(clones)

    def answer(self, family: Family, acting_as: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Take one question and grant or refuse the fork. `acting_as` makes this process the job's user."""
        question = bytearray(80)
        with contextlib.suppress(FileNotFoundError, InterruptedError):  # who asked is dead
            fcntl.ioctl(family.listener, RECEIVE, question)
        number, task = struct.unpack_from("=QI", question)
        if not task:
            return
        call, _, _, flags = struct.unpack_from("=iIQQ", question, 16)
        with acting_as():
            error = self._decide(family, task, flags if call in self.clones else 0)
        if not error:
            family.granted.append((time.monotonic(), task))
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(family.listener, SEND, struct.pack("=QqiI", number, 0, -error, 0 if error else CONTINUE))

    def _decide(self, family: Family, task: int, flags: int) -> int:
        """0, or the error number of the refusal."""
        members, tasks = self._members(family)
        self._settle(family, task)
        if tasks + len(family.granted) >= family.processes:
            return EAGAIN
        if flags & CLONE_THREAD:
            return 0
        asking = self._size(self._process_of(task))
        sizes = [self._size(pid) for pid in members] + [asking] * len(family.granted) + [0 if flags & CLONE_VM else asking]
        share = fair_share(sizes, family.memory - self.base * (len(sizes) - 1))
        if share < MIN_SHARE:
            return ENOMEM
        self._set_limits(members, share)
        family.split = True
        return 0

    def hand_back(self, family: Family, acting_as: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Processes that have ended leave their shares to the others."""
        self._settle(family)
        if family.granted:
            return
        members, _ = self._members(family)
        sizes = [self._size(pid) for pid in members]
        share = fair_share(sizes, family.memory - self.base * (len(sizes) - 1))
        with acting_as():
            self._set_limits(members, max(share, 0))
        family.split = len(members) > 1

    def _settle(self, family: Family, asking: int = 0) -> None:
        """Forget grants that have been used; whoever asks again has used its last one."""
        now = time.monotonic()
        family.granted = [
            (at, task)
            for at, task in family.granted
            if task != asking and now - at < SETTLED_S and (now - at < ASLEEP_S or self._state(task) in b"RD")
        ]

    def _state(self, task: int) -> bytes:
        """One letter; b"" of what has ended, which is in any bytes, so a dead task's grant waits for SETTLED_S."""
        return self._read(f"{task}/stat").rpartition(b")")[2].strip()[:1]

    def _set_limits(self, members: Sequence[int], share: int) -> None:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
                resource.prlimit(pid, resource.RLIMIT_AS, (min(self.base + share, hard), hard))

    def _members(self, family: Family) -> tuple[list[int], int]:
        """Processes of the job, and how many tasks they have."""
        members: list[int] = []
        tasks = 0
        new = [family.pid, *self._orphans(family.pid)]
        while new:
            members += new
            children: list[int] = []
            for pid in new:
                for task in self._tasks(pid):
                    tasks += 1
                    children += self._children(pid, task)
            new = [pid for pid in children if pid not in members]
        return members, tasks

    def _orphans(self, group: int) -> Iterator[int]:
        """Processes of a job's group whose parents have ended: where they have no namespace they are this process's."""
        for pid in self._children(os.getpid(), os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                if pid != group and os.getpgid(pid) == group:
                    yield pid

    def _tasks(self, pid: int) -> list[int]:
        with contextlib.suppress(OSError):
            fd = os.open(f"{pid}/task", os.O_DIRECTORY, dir_fd=self.proc)
            try:
                return [int(name) for name in os.listdir(fd)]
            finally:
                os.close(fd)
        return []

    def _children(self, pid: int, task: int) -> list[int]:
        return [int(word) for word in self._read(f"{pid}/task/{task}/children").split()]

    def _process_of(self, task: int) -> int:
        words = self._read(f"{task}/status").split()
        return int(words[words.index(b"Tgid:") + 1]) if b"Tgid:" in words else task

    def _size(self, pid: int) -> int:
        """Address space beyond what every process of the server has."""
        words = self._read(f"{pid}/statm").split()
        return max(0, int(words[0]) * resource.getpagesize() - self.base) if words else 0

    def _read(self, path: str) -> bytes:
        """b"" of what has ended."""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY, dir_fd=self.proc)
            try:
                return os.read(fd, 1 << 16)
            finally:
                os.close(fd)
        return b""


def fair_share(sizes: Sequence[int], memory: int) -> int:
    """The largest share such that the sum of max(size, share) is at most `memory`; -1 if the sizes alone are more."""
    rest = sorted(sizes)
    fixed = 0  # of those that hold more than a share
    while rest:
        share = (memory - fixed) // len(rest)
        if share >= rest[-1]:
            return share
        fixed += rest.pop()
    return -1
