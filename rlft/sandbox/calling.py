"""The function that a call's name means. The source of this file is also sent along where only a program's output comes back."""

from __future__ import annotations

import types
from typing import Any


def resolve(namespace: dict[str, Any], name: str) -> Any:
    """`f`, `Class.static`, or `Class.method`, for which an instance is made without arguments; so for `Class().method`."""
    first, *rest = name.replace("()", "").split(".")
    if first not in namespace:
        raise NameError(f"the program defines no {first!r}")
    found = namespace[first]
    for part in rest:
        if isinstance(found, type) and isinstance(getattr(found, part, None), types.FunctionType):
            static = any(isinstance(vars(base).get(part), staticmethod) for base in found.__mro__)
            found = found if static else found()
        found = getattr(found, part)
    return found
