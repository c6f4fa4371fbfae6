# my_rewards.py
from rlft import Task, Trajectory


def brief(task: Task, trajectory: Trajectory, *, budget: int = 400) -> float:
    """1 up to `budget` characters, then falling to 0 at twice the budget."""
    return max(0.0, min(1.0, 2 - len(trajectory.text) / budget))
