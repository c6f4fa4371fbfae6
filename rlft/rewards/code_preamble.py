"""Names that contest sites let programs use without an import, as `deque`, `heapq`, `inf` or `List`: the imports that a program lacks."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import re
import symtable
from collections.abc import Collection, Iterator

# What LeetCode, and the test programs that came with APPS and LiveCodeBench, import from; of two that have a name the last counts.
MODULES = "typing fractions decimal operator datetime statistics string copy random bisect heapq math itertools functools collections"
ONLY_THEMSELVES = "sys os time re json queue io"
MAX_CODE = 16_384  # characters of a program that is looked into: parsers take long over long hostile ones
OF_SYS = "stdin stdout stderr setrecursionlimit maxsize"


def with_preamble(program: str, given: Collection[str] = ()) -> str:
    """The program with one line of imports for the customary names that it uses and nowhere defines; as it is if there are none.

    Args:
        given: names that are not to be imported: those of the functions that the program has to define.

    A program of more than MAX_CODE characters is left as it is.
    """
    if len(program) > MAX_CODE or _known().keys().isdisjoint(re.findall(r"[A-Za-z_]\w*", program)):
        return program
    try:
        lines = _imports(program, given)
        after = _head(program) if lines else 0
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return program  # it will not run, and say so itself
    if not lines:
        return program
    before = re.findall(r"[^\n]*\n|[^\n]+", program)
    return "".join(
        [*before[:after], "" if after == 0 or before[after - 1].endswith("\n") else "\n", f"{'; '.join(lines)}\n", *before[after:]]
    )


def _imports(program: str, given: Collection[str]) -> list[str]:
    """Statements that import what is missing."""
    names = sorted(_undefined(symtable.symtable(program, "main.py", "exec")) & _known().keys() - set(given))
    if not names:
        return []
    attributes: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.setdefault(node.value.id, set()).add(node.attr)
    return [_import(name, attributes.get(name, set())) for name in names]


def _import(name: str, attributes: Collection[str]) -> str:
    """`copy` is a module and a function of it: whatever has the attributes that are used is meant."""
    module = _known()[name]
    itself = name in MODULES.split() or name in ONLY_THEMSELVES.split()
    of_module = itself and attributes and all(hasattr(importlib.import_module(name), attribute) for attribute in attributes)
    return (
        f"import {name}"
        if of_module or module == name and not hasattr(importlib.import_module(name), name)
        else f"from {module} import {name}"
    )


@functools.cache
def _known() -> dict[str, str]:
    """Every customary name, with the module that it is imported from."""
    known = {name: "sys" for name in OF_SYS.split()}
    known |= {name: name for name in f"{MODULES} {ONLY_THEMSELVES}".split()}
    for module in MODULES.split():
        content = importlib.import_module(module)
        public = getattr(content, "__all__", None) or [name for name in dir(content) if not name.startswith("_")]
        known |= {name: module for name in public if not hasattr(builtins, name)}
    return known


def _undefined(module: symtable.SymbolTable) -> set[str]:
    """Global names that are read somewhere and bound nowhere."""
    used: set[str] = set()
    bound: set[str] = set()
    for table in _all_tables(module):
        for symbol in table.get_symbols():
            binds = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
            is_global = table is module or symbol.is_global()
            if is_global and binds:
                bound.add(symbol.get_name())
            elif is_global and symbol.is_referenced():
                used.add(symbol.get_name())
    return {name for name in used - bound if not hasattr(builtins, name)}


def _all_tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    waiting = [table]
    while waiting:
        yield (table := waiting.pop())
        waiting += table.get_children()


def _head(program: str) -> int:
    """Lines of a docstring and of future statements, before which nothing may stand."""
    after = 0
    for number, node in enumerate(ast.parse(program).body):
        docstring = (
            number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        after = node.end_lineno or 0
    return after
