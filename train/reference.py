"""The DPO reference: its log-probabilities of every pair computed once, or its parameters kept.

Precomputed, one copy of the model suffices for training. The file grows batch by batch, so that a killed
pass goes on where it stopped; it belongs to a fingerprint of the data and a checksum of the parameters.
Not here: the forward pass itself (losses.py).
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from configs.schema import DPOConfig
from gemma4_jax.distributed import barrier, is_main, main_first, on_this_host, say
from gemma4_jax.errors import UserError
from gemma4_jax.sharding import make_mesh
from train.checksum import tree_checksum
from train.data.pipeline import PairRows
from train.losses import Params, reference_pass
from train.placement import all_rows
from train.start import Start
from train.workdir import Workdir

# Below this share of the pairs a pass over all of them is not worth the memory it saves.
_RARE_VISITS = 4

_PAIR_BYTES = 2 * np.dtype(np.float32).itemsize

ReferencePass = Callable[[Params, dict[str, jax.Array]], jax.Array]


def read_reference(folder: Path, fingerprint: str, pairs: int) -> np.ndarray | None:
    """float32 [pairs, 2] (chosen, rejected) of a finished pass over this data; None if there is none."""
    file = folder / f"{fingerprint}.f32"
    if not file.exists() or file.stat().st_size != pairs * _PAIR_BYTES:
        return None
    return np.fromfile(file, np.float32).reshape(-1, 2)


def precompute(
    forward: ReferencePass,
    params: Params,
    source: PairRows,
    rows: int,
    folder: Path,
    fingerprint: str,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Run, or finish, the pass over all pairs of `source`; float32 [pairs, 2] (chosen, rejected).

    forward: (params, batch) -> float32 [rows, 2]. rows: pairs taken at a time. fingerprint: of the data
    and of how `forward` computes. mesh: that `params` are on; None: one device. What other
    parameters left in `folder` is discarded.
    """
    mesh = mesh or make_mesh({})
    folder.mkdir(parents=True, exist_ok=True)
    file, note = folder / f"{fingerprint}.f32", folder / f"{fingerprint}.json"
    made_by = {"params": tree_checksum(params), "rows": rows}
    with main_first("reference note"):
        if is_main() and (not note.exists() or json.loads(note.read_text()) != made_by):
            file.unlink(missing_ok=True)
            note.write_text(json.dumps(made_by))
    pairs = len(source)
    # Only whole batches count: the batches of a continued pass are those of an undisturbed one.
    done = file.stat().st_size // _PAIR_BYTES if file.exists() else 0
    done = done if done == pairs else done // rows * rows
    if done < pairs:
        say(f"reference log-probabilities: {done} of {pairs} pairs are there, computing the rest")
    barrier("reference read")
    # All processes compute, each its rows; the main one writes.
    with open(file if is_main() else os.devnull, "ab") as output, jax.set_mesh(mesh):
        if is_main():
            output.truncate(done * _PAIR_BYTES)
        for first in range(done, pairs, rows):
            # The last batch is filled up with its last pair, so that one compiled shape serves all.
            examples = [source[min(i, pairs - 1)] for i in range(first, first + rows)]
            batch = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
            found = on_this_host(forward(params, all_rows(batch, mesh)))
            logprobs = np.asarray(found, np.float32)
            output.write(logprobs[: pairs - first].tobytes())
            output.flush()
    barrier("reference written")
    return np.fromfile(file, np.float32).reshape(-1, 2)


def choose_reference(config: DPOConfig, pairs: int, visits: int) -> tuple[bool, str]:
    """Whether the reference is a live copy, and why, in one line.

    pairs: of the data; visits: pairs that the run trains on, each visit counted. A copy costs the memory of
    the parameters once more and a forward pass a visit; a pass before training costs a forward pass a pair.
    """
    loss = config.loss
    if loss.sync_every:
        return True, f"live copy: it follows the policy every {loss.sync_every} steps"
    if loss.reference_path:
        return False, f"precomputed: one pass of {loss.reference_path} over {pairs} pairs"
    if loss.reference != "auto":
        return loss.reference == "live", f"{loss.reference}, as loss.reference says"
    if config.lora.rank and visits <= pairs:
        return True, (
            f"the base without its adapters, live: no copy, and no more passes than over {pairs} pairs"
        )
    if visits < pairs // _RARE_VISITS:
        return True, (
            f"live copy: the run visits {visits} of {pairs} pairs, a pass over all would cost more"
        )
    return False, f"precomputed: one pass over {pairs} pairs, no second copy of the parameters"


def precomputed(
    start: Start, sources: Mapping[str, PairRows], config: DPOConfig, workdir: Workdir
) -> tuple[dict[str, np.ndarray], Callable[[], Params]]:
    """Log-probabilities of a run's pairs, and what makes its initial parameters.

    sources: pairs by the fingerprint of their data; the results have the same keys. Parameters that were
    loaded for the pass are those that training starts from: there is never a second copy, and after the first
    checkpoint none is loaded at all.
    """
    tail = "" if config.loss.ld_alpha is None else f"-ld{config.loss.ld_alpha!r}"
    names = {data: f"{data}-{config.model.compute_dtype}{tail}" for data in sources}
    resuming = workdir.has_checkpoint()
    found: dict[str, np.ndarray] = {}
    if resuming:
        for data, source in sources.items():
            logprobs = read_reference(workdir.reference, names[data], len(source))
            if logprobs is not None:
                found[data] = logprobs
        if len(found) == len(sources):
            return found, start.load
    params = start.load()
    forward = reference_pass(start.module, start.config, config.loss.ld_alpha)
    rows = config.batch.rows // config.batch.accumulation
    for data, source in sources.items():
        if data not in found:
            found[data] = precompute(
                forward, params, source, rows, workdir.reference, names[data], start.mesh
            )
    # `pop` hands the parameters over and keeps no reference to them.
    return found, start.load if resuming else [params].pop


def check_live(folder: Path, params: Params, resuming: bool) -> None:
    """Note the checksum of a live reference; UserError if a run goes on with another one."""
    folder.mkdir(parents=True, exist_ok=True)
    note, checksum = folder / "live.json", tree_checksum(params)
    if resuming and note.exists() and json.loads(note.read_text())["params"] != checksum:
        raise UserError(
            "the weights in model.path are not those this run was started with, so the reference "
            "would change; use another run.workdir, or the old weights"
        )
    barrier("live reference read")
    if is_main():
        note.write_text(json.dumps({"params": checksum}))
