"""Tier A: a root folder that holds nothing but what Python needs, and per job a clone into namespaces of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass

from rlft.sandbox import kernel

JOB = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
SCRATCH = "/job/tmp"
PROBE = "/not-for-jobs"  # in the root, but in no Landlock rule: only Landlock hides it
UIDS = 1000  # as root, of one server
INSIDE = 1000  # user and group id that a job sees
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
LOADERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}


@dataclass(frozen=True)
class Place:
    """Where jobs run: descriptors of what they may read, and of the host's /proc for their server."""

    readable: tuple[int, ...]  # O_PATH descriptors; programs in them may be executed
    devices: tuple[tuple[int, bool], ...]  # O_PATH descriptor, may be written
    proc: int


def visible(python: str, site: Sequence[str]) -> list[str]:
    """Real paths that a Python program needs: interpreter, standard library, packages, shared libraries, time zones."""
    wanted = [python, os.path.dirname(os.__file__), ctypes.__file__, *site, *_library_folders()]
    wanted += ["/etc/ld.so.cache", "/usr/share/zoneinfo"]
    real = sorted({os.path.realpath(path) for path in wanted if os.path.exists(path)})
    return [path for path in real if not any(path != other and path.startswith(other + "/") for other in real)]


def _library_folders() -> set[str]:
    """Of the shared objects that this process has mapped: the libraries of the system's, which extensions link to."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        mapped = [line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")]
    return {os.path.dirname(path) for path in mapped if ".so" in os.path.basename(path)}


def open_place(paths: Sequence[str], proc: int) -> Place:
    path_only = os.O_PATH | os.O_CLOEXEC
    devices = tuple((os.open(path, path_only), path == "/dev/null") for path in DEVICES if os.path.exists(path))
    return Place(tuple(os.open(path, path_only) for path in paths), devices, proc)


def enter_root(paths: Sequence[str]) -> None:
    """Move this process into a new read-only root that shows `paths` alone.

    Raises OSError where the kernel or the container does not allow it.
    """
    if os.geteuid() == 0:
        kernel.unshare(kernel.CLONE_NEWNS)
    else:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        proc = os.open("/proc/self", os.O_DIRECTORY)
        _write_maps(proc, f"{uid} {uid} 1", f"{gid} {gid} 1")
        os.close(proc)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = {path: os.open(path, os.O_PATH) for path in [*paths, *filter(os.path.exists, DEVICES)]}
    links = {path: os.readlink(path) for path in ("/lib", "/lib64", "/bin", "/usr/lib64") if os.path.islink(path)}
    top = "/tmp"  # hidden below from here on; the sources are open already
    kernel.mount("rlft", top, "tmpfs", kernel.MS_NOSUID, "mode=755,size=1m,nr_inodes=4096")
    for path, fd in sources.items():
        _bind(fd, path, top + path)
    for path, target in links.items():
        if not os.path.lexists(top + path):
            os.symlink(target, top + path)
    _extras(top)
    os.chdir(top)
    kernel.pivot_root_here()
    _loader()
    _seal()


def _bind(fd: int, path: str, target: str) -> None:
    if os.path.isdir(f"/proc/self/fd/{fd}"):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(f"/proc/self/fd/{fd}", target, None, kernel.MS_BIND | kernel.MS_REC)
    os.close(fd)
    if path not in DEVICES:
        kernel.mount_setattr(target, kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)


def _extras(top: str) -> None:
    os.makedirs(top + SCRATCH)
    os.makedirs(top + "/dev", exist_ok=True)
    os.symlink(SCRATCH, top + "/dev/shm")  # for the semaphores of multiprocessing
    if not os.path.lexists(top + "/tmp"):  # where packages below /tmp are not shown
        os.symlink(SCRATCH, top + "/tmp")
    with open(top + PROBE, "w", encoding="utf-8") as file:
        file.write("visible\n")


def _loader() -> None:
    """The dynamic loader under the name that is written in executables."""
    path = LOADERS.get(os.uname().machine, "")
    if path and not os.path.exists(path):
        name = os.path.basename(path)
        found = [os.path.join(folder, name) for folder, _, files in os.walk("/usr/lib") if name in files]
        if found:
            folder = os.path.realpath(os.path.dirname(path))
            os.makedirs(folder, exist_ok=True)
            os.symlink(found[0], os.path.join(folder, name))


def _seal() -> None:
    """The root's own tmpfs alone: what is mounted in it has its attributes already."""
    kernel.mount(None, "/", None, 0x20 | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)  # 0x20: MS_REMOUNT


def _write_maps(proc: int, uid_map: str, gid_map: str) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
        fd = os.open(name, os.O_WRONLY, dir_fd=proc)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def map_ids(place: Place, pid: int, uid: int, gid: int) -> None:
    """Give a job its one user and group: INSIDE there, `uid` and `gid` here."""
    proc = os.open(str(pid), os.O_DIRECTORY, dir_fd=place.proc)
    try:
        _write_maps(proc, f"{INSIDE} {uid} 1", f"{INSIDE} {gid} 1")
    finally:
        os.close(proc)


def mount_scratch(disk_mb: int, files: int) -> None:
    """A job's own tmpfs; programs in it cannot be executed."""
    options = f"size={disk_mb}m,nr_inodes={files},mode=700,uid={INSIDE},gid={INSIDE}"
    kernel.mount("scratch", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, options)


def free_uid_block() -> int:
    """First of UIDS user ids that no other sandbox of this machine takes, held by a socket's name until this process ends."""
    import socket

    for first in range(20000, 60000, UIDS):
        holder = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            holder.bind(f"\0rlft-sandbox-uids-{first}")
            _held.append(holder)
            return first
        holder.close()
    raise OSError("all blocks of user ids for sandboxes are taken")


_held: list[object] = []
