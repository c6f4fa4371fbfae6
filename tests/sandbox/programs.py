"""Programs as contestants write them, with their input and what they must print under `python main.py`; wrong ones among them.

RIGHT: name: (code, input, expected output). WRONG: the same for programs that do not earn it.
"""

RIGHT = {
    "prints": ("print(6 * 7)", "", "42\n"),
    "reads lines": ("a = int(input())\nb = int(input('second? '))\nprint(a + b)", "1\n2\n", "second? 3\n"),
    "reads all": ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", "1 2\n3", "6\n"),
    "reads by descriptor": ("print(sum(map(int, open(0).read().split())))", "4 5", "9\n"),
    "reads bytes": ("import sys\nfor line in sys.stdin.buffer:\n    print(len(line))", "abc\n\u00e9\n", "4\n3\n"),
    "reads until the end": ("try:\n    while True:\n        print(input()[::-1])\nexcept EOFError:\n    pass", "ab\ncd", "ba\ndc\n"),
    "exit()": ("print(1)\nexit()\nprint(2)", "", "1\n"),
    "exit(0)": ("print(1)\nexit(0)\nprint(2)", "", "1\n"),
    "quit()": ("print(1)\nquit()\nprint(2)", "", "1\n"),
    "sys.exit()": ("import sys\ndef main():\n    print(1)\n    sys.exit()\nmain()\nprint(2)", "", "1\n"),
    "sys.exit(None) in a branch": ("import sys\nif input() == 'q':\n    print('bye')\n    sys.exit(None)\nprint(2)", "q", "bye\n"),
    "raise SystemExit": ("print(1)\nraise SystemExit", "", "1\n"),
    "os._exit": ("import os\nprint(1, flush=True)\nos._exit(0)", "", "1\n"),
    "exit() is caught": ("try:\n    exit(3)\nexcept SystemExit as error:\n    print(error.code)", "", "3\n"),
    "main guard": ("def main():\n    print(1)\nif __name__ == '__main__':\n    main()", "", "1\n"),
    "its names": (
        "import sys\nprint(__name__, sys.argv == ['main.py'] or sys.argv, sys.stdin.name, sys.stdout.mode)",
        "",
        "__main__ True <stdin> w\n",
    ),
    "depth just within the limit": ("def f(n):\n    return n and 1 + f(n - 1)\nprint(f(998))", "", "998\n"),
    "depth found by trial": (
        "def f(n):\n    try:\n        return f(n + 1)\n    except RecursionError:\n        return n\nprint(f(1))",
        "",
        "999\n",
    ),
    "raised limit": ("import sys\nsys.setrecursionlimit(10**6)\ndef f(n):\n    return n and 1 + f(n - 1)\nprint(f(50_000))", "", "50000\n"),
    "recursion in a thread": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 28)\ndef f(n):\n    return n and 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(20_000)))\nt.start()\nt.join()",
        "",
        "20000\n",
    ),
    "eight threads": (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\ndef work(x):\n    time.sleep(0.001)\n    return x * x\n"
        "with ThreadPoolExecutor(8) as pool:\n    print(sum(pool.map(work, range(100))))",
        "",
        "328350\n",
    ),
    "thirty threads": (
        "import threading\nbarrier = threading.Barrier(30)\nthreads = [threading.Thread(target=barrier.wait) for _ in range(29)]\n"
        "for t in threads:\n    t.start()\nbarrier.wait()\nprint('met')",
        "",
        "met\n",
    ),
    "a thread outlives the main one": (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('last'))).start()\nprint('first')",
        "",
        "first\nlast\n",
    ),
    "long integers": ("print(len(str(10**5000)), int('9' * 5000) % 10)", "", "5001 9\n"),
    "atexit": ("import atexit\natexit.register(print, 'end')\nprint('start')", "", "start\nend\n"),
    "atexit that fails": ("import atexit\natexit.register(lambda: 1 / 0)\nprint('start')", "", "start\n"),
    "an unclosed file on stdout": ("out = open(1, 'w')\nfor n in range(3):\n    out.write(f'{n}\\n')", "", "0\n1\n2\n"),
    "a stream of its own": (
        "import io, os, sys\nclass Fast(io.IOBase):\n"
        "    def __init__(self):\n        self.parts = []\n        self.write = self.parts.append\n"
        "    def flush(self):\n        os.write(1, ''.join(self.parts).encode())\n        self.parts.clear()\n"
        "sys.stdout = Fast()\nprint(5)",
        "",
        "5\n",
    ),
    "a destructor": (
        "class A:\n    def __del__(self):\n        print('gone')\na = A()\na.itself = a\ndef f():\n    return a",
        "",
        "gone\n",
    ),
    "byte order mark": ("\ufeffprint(1)", "", "1\n"),
    "carriage returns stay": ("import sys\nprint(ascii(sys.stdin.readline()))", "a\r\n", "'a\\r\\n'\n"),
    "dataclass with string annotations": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass P:\n    x: int\n    n: ClassVar[int] = 3\nprint(P(1))",
        "",
        "P(x=1)\n",
    ),
    "annotations are values": ("def f(x: int): ...\nprint(f.__annotations__)", "", "{'x': <class 'int'>}\n"),
    "pickles its own class": ("import pickle\nclass A:\n    x = 3\nprint(pickle.loads(pickle.dumps(A())).x)", "", "3\n"),
    "reads its own source": ("import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f), end='')", "", "def f():\n    return 1\n"),
    "asyncio": ("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 3\nprint(asyncio.run(f()))", "", "3\n"),
    "alarm": (
        "import signal\ndef ring(*_):\n    raise TimeoutError\nsignal.signal(signal.SIGALRM, ring)\n"
        "try:\n    signal.setitimer(signal.ITIMER_REAL, 0.02)\n    while True: pass\nexcept TimeoutError:\n    print('rang')",
        "",
        "rang\n",
    ),
    "generators and sorting": ("print(*sorted({3, 1, 2}, key=lambda x: -x), sep=',')", "", "3,2,1\n"),
}
WRONG = {
    "another number": ("print(41)", "", "42\n"),
    "right, but fails afterwards": ("print(42)\nexit(1)", "", "42\n"),
    "right, but exits with a text": ("import sys\nprint(42)\nsys.exit('done')", "", "42\n"),
    "right, but raises": ("print(42)\n1 / 0", "", "42\n"),
    "exits too early": ("exit()\nprint(42)", "", "42\n"),
    "too deep": ("def f(n):\n    return n and 1 + f(n - 1)\nprint(f(1001))", "", "1001\n"),
    "a name without import": ("print(deque([42])[0])", "", "42\n"),
    "an annotation without import": ("def f(x: List[int]): return 42\nprint(f([]))", "", "42\n"),
    "no input left": ("input()\nprint(42)", "", "42\n"),
    "only in a function": ("def main():\n    print(42)\nif __name__ == 'solution':\n    main()", "", "42\n"),
    "its own hook": ("import sys\nsys.excepthook = lambda *error: print(42)\n1 / 0", "", "42\n"),
    "not Python": ("print 42", "", "42\n"),
    "raises in its own hook": ("import sys\nsys.excepthook = lambda *error: sys.exit(1)\nprint(42)\n1 / 0", "", "42\n"),
    "prints to stderr": ("import sys\nprint(42, file=sys.stderr)", "", "42\n"),
}
WRITES = {  # needs a folder that can be written to
    "a file of its own": ("with open('x.txt', 'w') as f:\n    f.write('7')\nprint(open('x.txt').read())", "", "7\n"),
    "a database": (
        "import sqlite3\n"
        "with sqlite3.connect('x.db') as db:\n    db.execute('create table t (x)')\n    db.execute('insert into t values (7)')\n"
        "print(db.execute('select * from t').fetchone()[0])",
        "",
        "7\n",
    ),
    "two processes": (
        "from multiprocessing import Pool\nif __name__ == '__main__':\n    with Pool(2) as pool:\n        print(pool.map(abs, [1, -2]))",
        "",
        "[1, 2]\n",
    ),
}
FUNCTIONS = """\
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
import pickle

@dataclass
class Point:
    x: int
    kind: ClassVar[str] = "point"

class Solution:
    @staticmethod
    def twice(x):
        return 2 * x
    @classmethod
    def name(cls):
        return cls.__name__
    def depth(self, n):
        return n and 1 + self.depth(n - 1)

def point(x):
    return pickle.loads(pickle.dumps(Point(x))).x

def leave():
    exit(0)

def digits(n):
    return str(10**n)[:3]

def fails():
    return 1 / 0

def main_ran(ran=[]):
    return ran

if __name__ == "__main__":
    main_ran().append(1)
"""
CALLS = {  # what to call: what it must return; None: it must fail
    ("Solution.twice", (3,)): 6,
    ("Solution.name", ()): "Solution",
    ("Solution().depth", (990,)): 990,
    ("Solution.depth", (1200,)): None,
    ("point", (3,)): 3,
    ("leave", ()): None,
    ("digits", (5000,)): "100",
    ("fails", ()): None,
    ("main_ran", ()): [],
    ("absent", ()): None,
}
