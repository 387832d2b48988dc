"""Compiling does not grow with depth: more layers make the same program, with longer loops."""

import re
import time

import pytest

from benchmarks.compile_time import deep, lower_decode_step, lower_train_step

LOWER = {"train_step": lower_train_step, "decode": lower_decode_step}


def operations(lowered) -> int:
    """StableHLO operations of a lowered program."""
    return len(re.findall(r"^\s+(%|stablehlo\.)", lowered.as_text(), re.MULTILINE))


@pytest.mark.parametrize("kind", ["dense", "ple", "moe"])
@pytest.mark.parametrize("what", LOWER)
def test_program_size_is_independent_of_depth(kind, what):
    # From two repeats of every segment on (12 layers with shared K/V have one, and no loop over repeats).
    few, many = (operations(LOWER[what](deep(kind, layers))) for layers in (24, 60))
    assert few > 500
    assert many <= 1.02 * few


@pytest.mark.slow
@pytest.mark.parametrize("what", LOWER)
def test_compile_time_is_independent_of_depth(what, no_compilation_cache):
    seconds = {}
    for layers in (12, 60):
        lowered = LOWER[what](deep("dense", layers))
        began = (
            time.process_time()
        )  # CPU time of all threads: other work on the machine counts little
        lowered.compile()
        seconds[layers] = time.process_time() - began
    assert seconds[60] <= 1.3 * seconds[12], seconds
