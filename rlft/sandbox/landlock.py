"""Landlock: which files a process may still touch, whatever its user may (https://docs.kernel.org/userspace-api/landlock.html)."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from rlft.sandbox.kernel import syscall

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2

OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
LOOK = READ_FILE | READ_DIR
RUN = LOOK | EXECUTE
WORK = LOOK | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER


def abi() -> int:
    """Version of the kernel's Landlock; raises OSError if it has none or it is switched off."""
    return syscall("landlock_create_ruleset", None, 0, 1)


def _handled(version: int) -> int:
    newest = {1: MAKE_SYM, 2: REFER, 3: TRUNCATE, 4: TRUNCATE}.get(version, IOCTL_DEV)
    return (newest << 1) - 1


def restrict(rules: Sequence[tuple[int, int]], version: int) -> None:
    """From here on this process and its children have no more than `rules`: (descriptor of a path, rights beneath it).

    Needs no_new_privs. TCP is closed from version 4, signals and abstract sockets to others from 6.
    """
    handled = _handled(version)
    attributes = struct.pack("Q", handled)
    if version >= 4:
        attributes += struct.pack("Q", BIND_TCP | CONNECT_TCP)
    if version >= 6:
        attributes += struct.pack("Q", SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL)
    ruleset = syscall("landlock_create_ruleset", attributes, len(attributes), 0)
    for fd, rights in rules:
        syscall("landlock_add_rule", ruleset, 1, struct.pack("<Qi", rights & handled, fd), 0)
    syscall("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)
