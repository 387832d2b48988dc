"""The sampler's programs, lowered for a mesh of devices that need not be there: shapes and places alone.

Not here: compiling (`gemma4_jax/ahead.py`), the command line (`commands/decode_ahead.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma4_jax.build import transformer
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.cache import Cache, Compression, init_cache
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.sample import programs
from gemma4_jax.sample.decode import DecodeState, PrefillState
from gemma4_jax.sample.sampling import Settings, filters_for, row_keys
from gemma4_jax.sharding import DECODING_RULES, TOKENS, platform, rows_over, shardings

# As the released models come: temperature 1, top-k 64, top-p 0.95.
_TOP_K, _TOP_P = 64, 0.95
_STOP_IDS = 8


def lower(
    config: ModelConfig,
    mesh: Mesh,
    tokens: int,
    rows: int,
    compression: Compression,
    prompt: int | None,
) -> tuple[Any, int]:
    """The lowered program on `mesh`, which `jax.set_mesh` has set; and bytes of the cache on one device.

    bfloat16 weights by `DECODING_RULES`. rows, tokens: rounded up to what the mesh divides, as by the sampler.
    """
    rows += -rows % rows_over(mesh)
    tokens += -tokens % mesh.shape[TOKENS]
    module = transformer(config, "bfloat16", platform=platform())

    def placed(tree: Any, specs: Any) -> Any:
        return jax.tree.map(
            lambda leaf, cut: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, cut)
            ),
            tree,
            specs,
        )

    def whole(shape: tuple[int, ...], dtype: Any) -> Any:
        return placed(jax.ShapeDtypeStruct(shape, dtype), PartitionSpec())

    shapes = abstract_params(config, jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings(logical_axes(config), shapes, mesh, DECODING_RULES),
    )
    tensor = mesh.shape["tensor"]
    empty = jax.eval_shape(
        lambda: init_cache(config, rows, tokens, jnp.bfloat16, compression, tensor)
    )
    cache: Cache = placed(empty, programs.cache_specs(config, empty, mesh))
    size = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(cache.entries)
    )
    number, real = whole((rows,), jnp.int32), whole((rows,), jnp.float32)
    if prompt is not None:
        stream = placed(
            jax.ShapeDtypeStruct((rows, 1, config.d_model), jnp.bfloat16), programs.batch_spec()
        )
        prefill = PrefillState(cache, stream, whole((rows, 1), jnp.int32))
        chunk = whole((rows, prompt), jnp.int32)
        return programs.prefill_chunk.lower(module, params, prefill, chunk, number), size
    keys = jax.eval_shape(lambda: row_keys([0] * rows, [0] * rows))
    settings = Settings(real, number, real, real, whole(keys.shape, keys.dtype))
    flags = whole((rows,), jnp.bool_)
    state = DecodeState(cache, number, flags, number, number, settings)
    temperature, top_k, top_p, min_p = (np.full(1, x) for x in (1.0, _TOP_K, _TOP_P, 0.0))
    filters = filters_for(temperature, top_k, top_p, min_p)
    lowered = programs.decode_steps.lower(
        module, params, state, flags, whole((), jnp.int32), whole((_STOP_IDS,), jnp.int32),
        whole((config.vocab_size,), jnp.bool_), filters=filters, room=programs.DISPATCH_STEPS,
    )  # fmt: skip
    return lowered, size
