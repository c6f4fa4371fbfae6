# train.py
import rlft


def written(number, places):
    """47 in two places is "74": the starter reads and writes the least significant digit first."""
    return f"{number:0{places}}"[::-1]

def right(task, trajectory):
    return float(trajectory.text == task.answer)

pairs = [(a, b) for a in range(100) for b in range(a % 7, 100, 7)]
tasks = [
    rlft.Task(f"{a}+{b}", ({"role": "user", "content": f"{written(a, 2)}+{written(b, 2)}="},), written(a + b, 3))
    for a, b in pairs
]
config = rlft.load("run.toml", ["run_dir=runs/train", "steps=20"])
summary = rlft.train(config, reward=right, tasks=tasks)
print(summary["steps"], summary["checkpoint"])
