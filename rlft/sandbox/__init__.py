"""Model-written Python in a box made by the kernel: `rlft.sandbox.sandbox.Sandbox` runs scripts, calls and sessions."""
