"""Evaluation: what a score is worth. Stranger to `train`; both stand on `gemma4_jax`."""
