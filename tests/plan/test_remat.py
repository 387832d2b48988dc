"""What remat policies keep, by the traced gradient: products are done again under "full" and only there."""

import jax
import jax.numpy as jnp

from gemma4_jax.build import transformer
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.plan.memory import bytes_by_part
from gemma4_jax.plan.workload import Workload
from gemma4_jax.presets import preset
from tests.plan.test_model import inner_programs

TOKENS = 64


def gradient(remat):
    """The traced gradient of a sum of hidden states."""
    config = preset("tiny-dense")
    module = transformer(config, "float32", remat)

    def total(params, tokens):
        return module.apply({"params": params}, tokens).sum()

    tokens = jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)
    return jax.make_jaxpr(jax.grad(total))(abstract_params(config), tokens).jaxpr


def products(jaxpr):
    """Matrix products in the text of a program, loops' bodies once."""
    here = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    return here + sum(
        products(inner) for equation in jaxpr.eqns for inner in inner_programs(equation.params)
    )


def kept(jaxpr):
    """float32 bytes that the forward loop over pattern blocks hands to the backward one."""
    forward = next(e for e in jaxpr.eqns if e.primitive.name == "scan")
    return 4 * sum(v.aval.size for v in forward.outvars if v.aval.dtype == jnp.float32)


def test_each_policy_keeps_what_it_says():
    none, dots, full = (gradient(remat) for remat in ("none", "dots", "full"))
    assert products(none) < products(dots) < products(full)
    # Of a layer the seven products with parameters (full layers: six) are not done again under "dots".
    assert products(full) - products(dots) == 13
    found = kept(dots) - kept(full)
    planned = [
        bytes_by_part(
            Workload(
                config=preset("tiny-dense"),
                tokens=TOKENS,
                rows=1,
                remat=remat,
                compute_dtype="float32",
            )
        )["activations"]
        for remat in ("dots", "full")
    ]
    assert planned[0] - planned[1] == found
