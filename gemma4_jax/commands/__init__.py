"""The commands of `gemma4`, one module each, and what they share. Not here: how they end (cli.py)."""
