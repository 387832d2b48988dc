"""`make demo-real`: SFT and DPO on real data, the documented rules of the ruff linter."""
