"""What every test runs under: CPU, 8 virtual devices, full matmul precision, checked annotations.

The device count is set through jax's configuration and not through XLA_FLAGS, so that a command
line started by a test sees the one device that a user's would.
"""

import gc
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two deviceless TPU compilations at once need this (libtpu takes a lock file otherwise).
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# The suite compiles far more than it computes. These save 40 % of XLA's time, here and in command lines that
# tests start. (At level 0 gradients round differently, beyond what is compared.) Later jaxlibs abort at the
# second one. The third: eight virtual devices share two cores with everything else, and XLA ends the process
# if one of them keeps the others waiting for 40 seconds.
os.environ["XLA_FLAGS"] = " ".join(
    flag
    for flag, version in (
        (os.environ.get("XLA_FLAGS", ""), ""),
        ("--xla_backend_optimization_level=1", ""),
        ("--xla_cpu_use_fusion_emitters=false", "0.10."),
        ("--xla_cpu_collective_call_terminate_timeout_seconds=600", ""),
    )
    if importlib.metadata.version("jaxlib").startswith(version)
)

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

# Every annotated function and dataclass of the library checks its arguments and results, shapes
# included. It must be in place before the first import of gemma4_jax.
install_import_hook("gemma4_jax", "beartype.beartype")

ROOT = Path(__file__).resolve().parent.parent

# Compiled programs are kept from one run to the next, and shared by the processes of one run: a
# tiny MoE's gradient compiles in 7 s and loads in 0.3 s, with bit-identical results and the same
# memory analysis. A damaged entry is compiled again with a warning. Only the test process uses the
# cache; a command line that a test starts compiles as it would for a user.
COMPILED = ROOT / ".pytest_cache" / "compiled" / f"jax-{jax.__version__}"
COMPILED_LIMIT = 1 << 30  # bytes; beyond it the next run starts an empty cache
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Bound the cache; jax's own limit breaks when a process is killed between its two writes."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if not is_worker and COMPILED.is_dir():
        size = sum(path.stat().st_size for path in COMPILED.iterdir())
        if size > COMPILED_LIMIT:
            shutil.rmtree(COMPILED)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Compiled programs of a file are of no use to the next; kept, they fill 6 GB of a test process."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the clone; command lines started by tests run there."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Material outside the repository: $GEMMA4_SHARED, or `shared` beside the clone."""
    folder = Path(os.environ.get("GEMMA4_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared material at {folder}; set GEMMA4_SHARED to its folder")
    return folder


@pytest.fixture
def no_compilation_cache() -> Iterator[None]:
    """For tests that measure compiling itself."""
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # whether there is one is looked up once and remembered
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    reset_cache()


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The live reference implementation; its tests are skipped where it is not installed."""
    reason = "needs torch and transformers: pip install -e '.[oracle]'"
    pytest.importorskip("torch", reason=reason)
    return pytest.importorskip("transformers", reason=reason)
