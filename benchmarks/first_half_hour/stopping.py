"""Measures how long Ctrl-C and SIGTERM take at twelve moments of a run, and what they leave: stopping.json and stopping.md.

python benchmarks/first_half_hour/stopping.py                        # all of them, about half an hour
python benchmarks/first_half_hour/stopping.py "Ray starts" SIGTERM   # one, beside those measured before
"""

import json
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from stop_moments import MOMENTS, begin, end, stop, wait_for  # noqa: E402

SIGNALS = ("SIGINT", "SIGTERM")
COLUMNS = ("moment", "signal", "to", "seconds", "gone after", "exit", "left over", "what it said")


def measure(moment, name, to_group):
    with tempfile.TemporaryDirectory(prefix="rlft-stopping-") as folder:
        started = begin(Path(folder))
        try:
            wait_for(started, moment)
        except BaseException:
            end(started)
            raise
        found = stop(started, getattr(signal, name), to_group)
    return {
        "moment": moment,
        "signal": name,
        "to": "group" if to_group else "command",
        "seconds": round(found.seconds, 2),
        "gone after": round(found.gone_s, 2),
        "exit": found.status,
        "left over": len(found.left),
        "what it said": found.said.strip().replace("\n", " / ") or "(nothing)",
    }


def main():
    asked = [tuple(pair.split(":")) for pair in sys.argv[1:]] or [(moment, name) for moment in MOMENTS for name in SIGNALS]
    store = HERE / "stopping.json"
    rows = {(row["moment"], row["signal"]): row for row in (json.loads(store.read_text()) if store.exists() else [])}
    for moment, name in asked:
        to_group = (list(MOMENTS).index(moment) + SIGNALS.index(name)) % 2 == 0
        rows[moment, name] = measure(moment, name, to_group)
        print(rows[moment, name], flush=True)
        write(rows, store)


def write(rows, store):
    kept = [rows[moment, name] for moment in MOMENTS for name in SIGNALS if (moment, name) in rows]
    store.write_text(json.dumps(kept, indent=1) + "\n")
    lines = [f"| {' | '.join(str(row[column]) for column in COLUMNS)} |" for row in kept]
    text = [
        "# Ctrl-C and SIGTERM",
        "",
        "One tiny run of three steps each (`python benchmarks/first_half_hour/stopping.py`), on two cores that had other work too.",
        "`group`: the signal went to the whole process group, as a terminal sends it. Seconds count from the signal to the command's",
        "end, and until nothing that it had started was left. Promised are 5 seconds.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *lines,
    ]
    (HERE / "stopping.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
