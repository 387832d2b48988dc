"""Keeping compiled programs from one command to the next.

A tiny model's first token waits seconds for the compiler, a real one's a minute; with the programs on disk
the second command starts at once. Only the command line does this by itself: a library must not write
to a home directory unasked, and a training run compiles once.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Use $JAX_COMPILATION_CACHE_DIR if it is set, else `gemma4_jax/` in the user's cache directory."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.config.values.get(
        "jax_compilation_cache_dir"
    ):
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = home / "gemma4_jax" / f"jax-{jax.__version__}-{_machine()}"
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _machine() -> str:
    """Differs between processors: a program made for one may hold instructions another lacks, and home
    directories are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    except OSError:
        features = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *features]).encode()).hexdigest()[:12]
