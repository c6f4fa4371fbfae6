"""Counting what jobs use where no control group does: memory of a job's processes, and a user's tasks."""

from __future__ import annotations

import contextlib
import os
import resource
import time

PAGE = resource.getpagesize()
FRESH_S = 0.5


class Watch:
    """Reads the host's /proc through a descriptor, as its path may be out of sight."""

    def __init__(self, proc: int, base_bytes: int) -> None:
        self.proc = proc
        self.base_bytes = base_bytes
        self._counted: tuple[float, int] = (-FRESH_S, 0)

    def memory_of(self, pid: int) -> int:
        """Bytes that a job with children takes; 0 for one without, which its rlimit holds."""
        family = self._family(pid)
        return sum(map(self._proportional, family)) if len(family) > 1 else 0

    def _family(self, pid: int) -> list[int]:
        found, new = [], [pid, *self._orphans(pid)]
        while new:
            found += new
            new = [child for parent in new for child in self._children(parent) if child not in found]
        return found

    def _orphans(self, group: int) -> list[int]:
        """Processes of a job's group whose parents have ended: they are the server's own children."""
        mine = []
        for child in self._children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                if child != group and os.getpgid(child) == group:
                    mine.append(child)
        return mine

    def _children(self, pid: int) -> list[int]:
        children: list[int] = []
        with contextlib.suppress(OSError):
            tasks = os.open(f"{pid}/task", os.O_DIRECTORY, dir_fd=self.proc)
            try:
                for task in os.listdir(tasks):
                    children += map(int, self._read(f"{pid}/task/{task}/children").split())
            finally:
                os.close(tasks)
        return children

    def _proportional(self, pid: int) -> int:
        """Private memory and its share of what is shared; resident pages where that cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            words = self._read(f"{pid}/smaps_rollup").split()
            return sum(int(words[words.index(name) + 1]) for name in (b"Pss_Anon:", b"Pss_Shmem:")) * 1024
        with contextlib.suppress(OSError, ValueError):
            _, resident, shared, *_ = self._read(f"{pid}/statm").split()
            return (int(resident) - int(shared)) * PAGE
        return 0

    def tasks_of(self, uid: int) -> int:
        """Processes and threads of a user, not older than FRESH_S seconds."""
        at, count = self._counted
        if time.monotonic() - at >= FRESH_S:
            count = sum(self._tasks(name, uid) for name in os.listdir(self.proc) if name.isdigit())
            self._counted = (time.monotonic(), count)
        return count

    def _tasks(self, pid: str, uid: int) -> int:
        count = 0
        with contextlib.suppress(OSError):
            if os.stat(pid, dir_fd=self.proc).st_uid == uid:
                count = os.stat(f"{pid}/task", dir_fd=self.proc).st_nlink - 2
        return count

    def _read(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY, dir_fd=self.proc)
        try:
            return os.read(fd, 1 << 16)
        finally:
            os.close(fd)
