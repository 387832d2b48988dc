"""Rounds of preference training on answers that a program verified: `python -m train.rlaif`."""
