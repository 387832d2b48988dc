"""Models over the virtual devices."""

import dataclasses

import jax

from gemma4_jax.model.transformer import logical_axes
from gemma4_jax.sharding import DECODING_RULES, make_mesh, shardings


def over(model, sizes, rules=DECODING_RULES):
    """The model with its parameters over a mesh."""
    mesh = make_mesh(sizes)
    places = shardings(logical_axes(model.config), model.params, mesh, rules)
    return dataclasses.replace(model, params=jax.device_put(model.params, places))
