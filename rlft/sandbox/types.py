"""What goes into a sandboxed execution and what comes out of one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "oom", "output_limit", "crashed", "denied"]
Tier = Literal["A", "B"]

# Environment of every Python that runs a program, in any sandbox. Integers are written out whatever their length, as by
# the judges that contests use (the CPU limit bounds it here); and threads share one heap, as each heap takes
# 64 MiB of address space, which is what limits memory.
RUNTIME = {"PYTHONHASHSEED": "0", "PYTHONINTMAXSTRDIGITS": "0", "MALLOC_ARENA_MAX": "1", "LANG": "C.UTF-8", "TZ": "UTC"}
STACK_MB = 8  # of address space that a thread's stack takes, of which it uses little


@dataclass(frozen=True)
class Limits:
    """Of one execution; in a session `wall_s` and `output_bytes` hold for each cell.

    `cpu_s` counts per process, is rounded up to whole seconds and does not apply to sessions.
    `memory_mb` counts all processes and the scratch folder together.
    """

    wall_s: float = 5.0
    cpu_s: float = 2.0
    memory_mb: int = 512
    processes: int = 32  # threads count as well
    disk_mb: int = 64
    files: int = 4096
    output_bytes: int = 1 << 20  # stdout and stderr together; more of it ends the execution
    shown_chars: int = 65536  # of that, what a policy is shown

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"sandbox limit {field.name} must be positive, got {getattr(self, field.name)}")


def room_for_stacks(limits: Limits) -> int:
    """MB of address space beyond `memory_mb` where something else counts the memory in use: stacks are reserved, and hardly used."""
    return min(limits.processes * STACK_MB, limits.memory_mb // 2)


@dataclass(frozen=True)
class Execution:
    """How an execution ended.

    ok: it ran to its end. error: an exception, an exit code other than 0, or a value that is not plain data.
    timeout: the wall or CPU limit. oom: the memory limit. output_limit: it printed too much. crashed: a signal
    ended it. denied: it died from something that the sandbox does not let it do.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    value: Any = None  # of a call; in a session the repr of the last expression
    error: str = ""  # one line, "" if ok
    wall_s: float = 0.0

    def shown(self, max_chars: int = Limits.shown_chars) -> str:
        """What a policy is shown: output, value of a cell, error; the middle is cut out beyond `max_chars`."""
        parts = [self.stdout, self.stderr, self.value if isinstance(self.value, str) else ""]
        if self.error and self.error not in self.stderr:
            parts.append(f"[{self.status}] {self.error}")
        text = "\n".join(part.rstrip("\n") for part in parts if part)
        if len(text) <= max_chars:
            return text
        half = max_chars // 2
        return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
