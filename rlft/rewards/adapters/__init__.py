"""Reward functions written for other libraries, used as they are: one file per library."""
