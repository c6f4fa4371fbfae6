"""Mathematical equivalence of answers, made for killable grading processes.

Importing this package imports sympy with Python's integers: verdicts then do not depend on whether
gmpy2 is installed, and a number too large is a MemoryError where GMP would abort the process. Where
sympy was imported before, or SYMPY_GROUND_TYPES is set, that is kept: ordinary verdicts are the same, but a
hostile answer may end its process ("crashed") instead of running into its limits. It also grades a few
answers, so that the processes forked from one that has imported it find the parser warm.
"""

import logging
import os
import sys

if "sympy" not in sys.modules and "SYMPY_GROUND_TYPES" not in os.environ:
    os.environ["SYMPY_GROUND_TYPES"] = "python"
    os.environ["MPMATH_NOGMPY"] = "1"  # mpmath chooses for itself
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarms are off

from rlft.rewards.math.reward import CANARIES, math_equal, warm_up  # noqa: E402

warm_up()

__all__ = ["CANARIES", "math_equal"]
