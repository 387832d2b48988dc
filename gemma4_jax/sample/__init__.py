"""Sampling: logits to tokens, decoding over a state, strings in and strings out."""

from gemma4_jax.sample.sampler import Completion, Sampler, TextStream

__all__ = ["Completion", "Sampler", "TextStream"]
