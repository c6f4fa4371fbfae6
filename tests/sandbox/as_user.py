"""Runs a command as another user who can reach this interpreter: `python as_user.py <uid> command ...`, as root.

Folders that are closed to others (an interpreter below /root) are opened in a mount namespace of the command's own:
each is covered by an empty tmpfs in which only the folder that is needed is mounted again.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig

NEWNS, BIND, REC, PRIVATE = 0x20000, 4096, 16384, 1 << 18
libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source, target, kind, flags, data=None):
    check(libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data))


def needed():
    yield from (sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), os.path.dirname(os.path.realpath(sys.executable)), os.getcwd())


def first_closed(path):
    """The highest folder on the way that others may not enter."""
    parts = path.split("/")[1:]
    folders = ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]
    return next((folder for folder in folders if not os.stat(folder).st_mode & 0o1), "")


def open_the_way():
    closed = {}
    for path in map(os.path.realpath, needed()):
        if folder := first_closed(path):
            closed.setdefault(folder, set()).add(path)
    if not closed:
        return
    check(libc.unshare(NEWNS))
    mount(None, "/", None, REC | PRIVATE)
    for folder, paths in closed.items():
        paths = [path for path in paths if not any(path != other and path.startswith(other + "/") for other in paths)]
        held = {path: os.open(path, os.O_PATH) for path in paths}
        mount(b"opened", folder, b"tmpfs", 0, b"mode=755")
        for path, fd in held.items():
            os.makedirs(path, exist_ok=True)
            mount(f"/proc/self/fd/{fd}".encode(), path, None, BIND | REC)


if __name__ == "__main__":
    uid = int(sys.argv[1])
    os.umask(0o022)
    open_the_way()
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.environ["HOME"] = "/tmp"
    os.execvp(sys.argv[2], sys.argv[2:])
