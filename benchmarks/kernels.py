"""The kernels of training on this device, each against float32: one JSON line a case and implementation.

    python -m benchmarks.kernels [--only WORD ...] [--tokens 8192] [--repeat 5]

Attention: the layers of all models under windows, packed documents and images, by XLA, by our Triton kernels
and by cuDNN on a GPU, by splash on a TPU. Experts: the products of 26B-A4B, plain and of adapters, by
`lax.ragged_dot`, in blocks, by our Triton kernel or by megablox. A line has the largest error of output and
gradients (as a share of the largest number), milliseconds, TFLOP/s of useful work and their share of the
device's peak, or why an implementation refuses the case, or how it failed. `--only e2b-full` or `--only packed`
picks cases by name. Ends with exit code 1 if what training takes by default failed anywhere.

On a CPU shapes are tiny and kernels are interpreted: that the program works, and no more.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import megablox

from benchmarks.measure import emit, timed
from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.errors import UserError, report_user_errors
from gemma4_jax.model.attention import KeyValues, attend
from gemma4_jax.model.visibility import TokenFacts, visible
from gemma4_jax.parallel import splash, triton_attention
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul
from gemma4_jax.parallel.triton_grouped import triton_grouped_matmul
from gemma4_jax.presets import preset
from train.throughput import peak_flops

_MODELS = ("e2b", "e4b", "12b", "26b-a4b", "31b")
_MASKS = ("plain", "packed", "images", "packed-images")
# Soft tokens of an image at the usual budget.
_IMAGE = 256
# What an implementation raises that does not do a case: no such mask, no such shape. All else is its failure.
_REFUSALS = (ValueError, NotImplementedError)

# An implementation, or why there is none.
Choice = Callable[..., Any] | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A computation on arrays, in the device's type and in float32.

    run: (implementation, arrays) -> output. weights: what the output is multiplied by before it is summed and
    differentiated. default: the choice that training takes without being asked. flops: of useful work, forward;
    backward is `backward` times as much.
    """

    name: str
    about: dict[str, Any]
    arrays: tuple[jax.Array, ...]
    weights: jax.Array
    run: Callable[..., jax.Array]
    reference: Callable[..., Any]
    choices: dict[str, Choice]
    default: str
    flops: float
    backward: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name has one of these words"
    )
    parser.add_argument("--tokens", type=int, help="of a row (8192; on a CPU 128)")
    parser.add_argument("--repeat", type=int, default=5, help="timings, of which the best counts")
    args = parser.parse_args(argv)
    with report_user_errors():
        tokens = args.tokens or (128 if _on_cpu() else 8192)
        if tokens < 16 or args.repeat < 1:
            raise UserError(
                f"--tokens {tokens} must be at least 16, --repeat {args.repeat} at least 1"
            )
        picked = [
            (name, make)
            for name, make in (*attention_cases(tokens), *expert_cases(tokens))
            if any(word in name for word in args.only)
        ]
        if not picked:
            raise UserError(
                f"no case's name has one of {' '.join(args.only)}; try e2b-full or experts"
            )
        failed = [name for name, make in picked if not measure(make(name), args.repeat)]
    if failed:
        sys.exit(f"error: the default implementation failed: {', '.join(failed)}")


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _dtype() -> Any:
    """bfloat16, which a CPU multiplies too slowly."""
    return jnp.float32 if _on_cpu() else jnp.bfloat16


def measure(case: Case, repeat: int) -> bool:
    """One line for each implementation of a case; whether the default one did it."""
    exact = tuple(x.astype(jnp.float32) for x in case.arrays)
    with jax.default_matmul_precision("highest"):
        wanted = _outcome(case, case.reference)(*exact)
    peak = peak_flops(jax.devices()[0].device_kind)
    good = True
    for name, choice in case.choices.items():
        line = {"benchmark": "kernels", "case": case.name, **case.about, "implementation": name}
        line |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        if isinstance(choice, str):
            emit({**line, "refused": choice})
            continue
        try:
            both = _outcome(case, choice)
            errors = [
                _error(one, other) for one, other in zip(both(*case.arrays), wanted, strict=True)
            ]
            forward = jax.jit(functools.partial(case.run, choice))
            seconds = [_seconds(f, case.arrays, repeat) for f in (forward, both)]
        except (
            Exception
        ) as error:  # whatever a kernel does wrong: the others are measured all the same
            # Training has no other way where the default refuses.
            refused = isinstance(error, _REFUSALS) and name != case.default
            good &= name != case.default
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            emit({**line, "refused" if refused else "failed": why})
            continue
        rates = [case.flops / seconds[0], case.flops * (1 + case.backward) / seconds[1]]
        emit(
            {
                **line,
                "error": errors[0],
                "gradient_errors": errors[1:],
                "ms_forward": round(1e3 * seconds[0], 3),
                "ms_both": round(1e3 * seconds[1], 3),
                "tflops_forward": round(rates[0] / 1e12, 2),
                "tflops_both": round(rates[1] / 1e12, 2),
                "share_of_peak_forward": peak and round(rates[0] / peak, 4),
                "share_of_peak_both": peak and round(rates[1] / peak, 4),
            }
        )
    return good


def _outcome(case: Case, choice: Any) -> Callable[..., Any]:
    """arrays -> (output, gradients of all arrays), compiled."""

    def loss(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = case.run(choice, *arrays)
        return (out.astype(jnp.float32) * case.weights).sum(), out

    def both(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        gradients, out = jax.grad(loss, tuple(range(len(arrays))), has_aux=True)(*arrays)
        return (out, *gradients)

    return jax.jit(both)


def _error(found: jax.Array, wanted: jax.Array) -> float:
    """Largest difference, as a share of the largest number; nan where anything is not finite."""
    far = jnp.abs(found.astype(jnp.float32) - wanted.astype(jnp.float32)).max()
    return float(far / jnp.abs(wanted).max())


def _seconds(work: Callable[..., Any], arrays: tuple[jax.Array, ...], repeat: int) -> float:
    """Of one call among several that are waited for together: of a call alone the host is a part."""
    calls = 1 if _on_cpu() else 10

    def several() -> None:
        jax.block_until_ready([work(*arrays) for _ in range(calls)][-1])

    return min(timed(several, repeat).wall) / calls


def attention_cases(tokens: int) -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Name and maker of each: layers of one shape under each mask."""
    seen = set()
    for model in _MODELS:
        config = dataclasses.replace(preset(model), bidirectional="vision")
        for layer in (config.layers[0], config.layers[-1]):
            window = config.window if layer.kind == "sliding" else None
            shape = (
                config.num_heads,
                layer.num_kv_heads,
                layer.head_dim,
                window,
                layer.value_from_key,
            )
            if shape in seen:
                continue
            seen.add(shape)
            for mask in _MASKS:
                if window is None and "images" in mask:
                    continue  # full layers see images like text
                yield (
                    f"{model}-{layer.kind}-{mask}",
                    functools.partial(_attention, config, layer, mask, tokens),
                )


def _attention(config: ModelConfig, layer: LayerConfig, mask: str, tokens: int, name: str) -> Case:
    heads, kv_heads = config.num_heads, layer.num_kv_heads
    window = config.window if layer.kind == "sliding" else None
    if _on_cpu():  # interpreted, a tile costs as much as a layer does elsewhere
        heads, kv_heads, window = 2, min(kv_heads, 2), window and 48
    rng = np.random.default_rng(0)
    shapes = [(1, tokens, n, layer.head_dim) for n in (heads, kv_heads, kv_heads)]
    # As normed queries and keys: scores of a few units.
    arrays = [jnp.asarray(rng.normal(size=s) * s[-1] ** -0.25, _dtype()) for s in shapes]
    weights = jnp.asarray(rng.normal(size=shapes[0]), jnp.float32)
    facts = _facts(mask, tokens)
    if layer.value_from_key:  # one array for both: its gradient is a sum
        arrays.pop()

    def run(choice: Any, q: jax.Array, key: jax.Array, value: jax.Array | None = None) -> jax.Array:
        kv = KeyValues(key if value is None else value, facts, key)
        out: jax.Array = choice(config, q, kv, facts, window)
        return out

    pairs = _visible_pairs(facts, window)
    choices = _attention_choices(config, mask, arrays, facts, window)
    return Case(
        name=name,
        about={
            "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": layer.head_dim,
            "window": window, "mask": mask, "k_eq_v": layer.value_from_key, "dtype": str(arrays[0].dtype),
        },
        arrays=tuple(arrays),
        weights=weights,
        run=run,
        reference=attend,
        choices=choices,
        # As `parallel.kernels.attend_for`: splash where it can.
        default="splash" if not _on_cpu() and callable(choices.get("splash")) else "xla",
        flops=4.0 * layer.head_dim * heads * pairs,
        backward=2.5,
    )  # fmt: skip


def _facts(mask: str, tokens: int) -> TokenFacts:
    """One row: documents of very unequal lengths, images that cross their borders by no token."""
    order = np.arange(tokens)
    given: dict[str, np.ndarray] = {"index": order}
    if "packed" in mask:
        ends = np.array([0.05, 0.3, 0.4, 0.75]) * tokens
        given["segment"] = 1 + (order[:, None] >= ends).sum(1)
    if "images" in mask:
        image = min(_IMAGE, tokens // 16)
        place = order % (tokens // 4)  # four
        inside = (place >= image) & (place < 2 * image)
        given["block"] = np.where(inside, order // (tokens // 4), -1)
    return TokenFacts(**{name: jnp.asarray(fact[None], jnp.int32) for name, fact in given.items()})


def _visible_pairs(facts: TokenFacts, window: int | None) -> int:
    """How many pairs of a query and a key there are to compute."""
    tokens, chunk = facts.index.shape[1], 512
    parts = (facts[:, start : start + chunk] for start in range(0, tokens, chunk))
    return sum(
        int(visible(part, facts, window=window, bidirectional="vision").sum()) for part in parts
    )


def _attention_choices(
    config: ModelConfig, mask: str, arrays: list[jax.Array], facts: TokenFacts, window: int | None
) -> dict[str, Choice]:
    interpret, platform = _on_cpu(), jax.default_backend()
    kv = KeyValues(arrays[-1], facts, arrays[1])
    choices: dict[str, Choice] = {"xla": attend}
    if platform != "tpu":
        ours = functools.partial(triton_attention.triton_attend, interpret=interpret)
        choices["triton"] = triton_attention.refusal(config, arrays[0], kv) or ours
    if platform == "gpu":
        choices["cudnn"] = f"no mask for {mask}" if mask != "plain" else _cudnn
    else:
        theirs = functools.partial(splash.splash_attend, interpret=interpret)
        choices["splash"] = splash.refusal(config, arrays[0], kv, facts, window) or theirs
    return choices


def _cudnn(
    config: ModelConfig, q: jax.Array, kv: KeyValues, facts: TokenFacts, window: int | None
) -> jax.Array:
    assert kv.key is not None
    out: jax.Array = jax.nn.dot_product_attention(
        q,
        kv.key,
        kv.value,
        scale=1.0,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out


def expert_cases(tokens: int) -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Name and maker of each: into and out of an expert, and an adapter's low rank."""
    config = preset("26b-a4b")
    assert config.moe is not None
    d_model, d_ff = (256, 64) if _on_cpu() else (config.d_model, config.moe.d_ff)
    for name, inner, width in (
        ("in", d_model, d_ff),
        ("out", d_ff, d_model),
        ("lora", d_model, 16),
    ):
        experts = 8 if _on_cpu() else config.moe.num_experts
        rows = tokens * config.moe.num_experts_per_token
        yield f"experts-{name}", functools.partial(_experts, rows, experts, inner, width)


def _experts(rows: int, experts: int, inner: int, width: int, name: str) -> Case:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, inner)), _dtype())
    matrices = jnp.asarray(rng.normal(size=(experts, inner, width)) * inner**-0.5, _dtype())
    # As uneven as trained routers are: some experts have many times the mean, some next to nothing.
    sizes = jnp.asarray(rng.multinomial(rows, rng.dirichlet(np.ones(experts))), jnp.int32)

    def run(choice: Any, x: jax.Array, matrices: jax.Array) -> jax.Array:
        out: jax.Array = choice(x, matrices, sizes)
        return out

    choices: dict[str, Choice] = {
        "ragged_dot": jax.lax.ragged_dot,
        "blocks": blocked_grouped_matmul,
    }
    if jax.default_backend() == "tpu":
        choices["megablox"] = functools.partial(megablox.gmm, preferred_element_type=x.dtype)
    else:
        choices["triton"] = functools.partial(triton_grouped_matmul, interpret=_on_cpu())
    return Case(
        name=name,
        about={"rows": rows, "experts": experts, "in": inner, "out": width, "dtype": str(x.dtype)},
        arrays=(x, matrices),
        weights=jnp.asarray(rng.normal(size=(rows, width)), jnp.float32),
        run=run,
        reference=blocked_grouped_matmul,
        choices=choices,
        default="ragged_dot" if jax.default_backend() == "tpu" else "blocks",
        flops=2.0 * rows * inner * width,
        backward=2.0,
    )


if __name__ == "__main__":
    main()
