"""`python -m gemma4_jax`: the same as `gemma4`."""

from gemma4_jax.cli import main

main()
