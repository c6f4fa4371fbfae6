"""Memory and process limits of whole jobs by control groups, version 1 or 2, where they can be written."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

FILES: dict[int, dict[str, Any]] = {
    1: {"memory": "memory.limit_in_bytes", "oom": "memory.oom_control", "extras": {"memory.swappiness": "0"}},
    2: {"memory": "memory.max", "oom": "memory.events", "extras": {"memory.swap.max": "0", "memory.oom.group": "1"}},
}


def find(proc: str = "/proc/self") -> tuple[int, list[str]] | None:
    """(version, folders in which to make a child: one for both controllers, or memory's and pids') or None."""
    with open(f"{proc}/mounts", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    with open(f"{proc}/cgroup", encoding="utf-8") as file:
        groups = [line.strip().split(":", 2) for line in file]
    own = {name: path for _, names, path in groups for name in names.split(",")}
    v1 = {
        name: mount[1] + own[name].rstrip("/")
        for name in ("memory", "pids")
        for mount in mounts
        if mount[2] == "cgroup" and name in mount[3].split(",") and name in own
    }
    if len(v1) == 2:
        folders = [v1["memory"], v1["pids"]]
        return (1, folders) if all(os.access(folder, os.W_OK) for folder in folders) else None
    top = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), "")
    folder = _delegated(top, own.get("", "/")) if top else ""
    return (2, [folder]) if folder else None


def _delegated(top: str, path: str) -> str:
    """The nearest group above whose children have both controllers; "" if it cannot be written."""
    while True:
        folder = top + path.rstrip("/")
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.subtree_control", encoding="utf-8") as file:
            if {"memory", "pids"} <= set(file.read().split()):
                return folder if os.access(folder, os.W_OK) else ""
        if path in ("/", ""):
            return ""
        path = os.path.dirname(path)


@dataclass
class Slot:
    """The groups of one job at a time, used again and again: removed groups linger in the kernel."""

    version: int
    folders: list[int]
    members: list[int]  # cgroup.procs, open for writing
    oom: int
    limits: tuple[int, int] = (0, 0)
    kills: int = 0  # until the job that is in it

    def set_limits(self, memory_bytes: int, processes: int) -> None:
        if self.limits != (memory_bytes, processes):
            _write(self.folders[0], FILES[self.version]["memory"], str(memory_bytes))
            _write(self.folders[-1], "pids.max", str(processes))
            self.limits = (memory_bytes, processes)

    def close(self) -> None:
        for fd in (*self.folders, *self.members, self.oom):
            os.close(fd)

    def attach(self, pid: int) -> None:
        for fd in self.members:
            os.write(fd, str(pid).encode())

    def new_kills(self) -> int:
        """Processes that the kernel has killed for memory since the last call."""
        words = os.pread(self.oom, 4096, 0).decode().split()
        total = int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
        new, self.kills = total - self.kills, total
        return new


@dataclass
class Groups:
    """The groups of one server: `rlft-sandbox-<pid>` in the folders that `find` gives."""

    version: int
    folders: list[int]  # descriptors, as the paths may be out of sight later
    name: str
    made: list[str] = field(default_factory=list)

    @classmethod
    def open(cls) -> Groups | None:
        """None where groups cannot be written; the rlimits must do then."""
        found = find()
        if found is None:
            return None
        version, folders = found
        groups = cls(version, [os.open(folder, os.O_DIRECTORY) for folder in folders], f"rlft-sandbox-{os.getpid()}")
        try:
            groups._make_top()
        except OSError:
            groups.close()
            groups = None
        return groups

    def _make_top(self) -> None:
        for folder in self.folders:
            _remove_stale(folder)
            os.mkdir(self.name, dir_fd=folder)
            if self.version == 2:
                _write(folder, f"{self.name}/cgroup.subtree_control", "+memory +pids")
        self.slot("probe").set_limits(1 << 30, 64)

    def slot(self, name: str) -> Slot:
        path = f"{self.name}/{name}"
        opened = []
        for folder in self.folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, dir_fd=folder)
            opened.append(os.open(path, os.O_DIRECTORY, dir_fd=folder))
        if path not in self.made:
            self.made.append(path)
        files = FILES[self.version]
        for name, value in files["extras"].items():
            with contextlib.suppress(FileNotFoundError, PermissionError):  # kernels without swap accounting, old ones
                _write(opened[0], name, value)
        members = [os.open("cgroup.procs", os.O_WRONLY, dir_fd=folder) for folder in opened]
        return Slot(self.version, opened, members, os.open(files["oom"], os.O_RDONLY, dir_fd=opened[0]))

    def close(self) -> None:
        for folder in self.folders:
            for path in [*self.made, self.name]:
                with contextlib.suppress(OSError):
                    os.rmdir(path, dir_fd=folder)


def _remove_stale(folder: int) -> None:
    """What servers that were killed have left."""
    for name in os.listdir(folder):
        pid = name.removeprefix("rlft-sandbox-")
        if pid == name or not pid.isdigit() or os.path.exists(f"/proc/{pid}"):
            continue
        with contextlib.suppress(OSError):
            stale = os.open(name, os.O_DIRECTORY, dir_fd=folder)
            for inner in os.listdir(stale):
                with contextlib.suppress(OSError):
                    os.rmdir(inner, dir_fd=stale)
            os.close(stale)
            os.rmdir(name, dir_fd=folder)


def _write(folder: int, name: str, text: str) -> None:
    fd = os.open(name, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
