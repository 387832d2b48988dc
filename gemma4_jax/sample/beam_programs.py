"""The compiled programs of beam search; as in `engine_programs.py`, `jax.jit` stands here."""

import jax

from gemma4_jax.sample import beam_slots, engine_memory

fork = jax.jit(beam_slots.fork, static_argnums=(3, 4))
follow = jax.jit(beam_slots.follow, donate_argnums=0)
copy_pages = jax.jit(engine_memory.copy_pages, donate_argnums=0)
likeliest = jax.jit(beam_slots.likeliest, static_argnums=(0, 4))
