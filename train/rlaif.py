"""Preferences that programs verify: `python -m train.rlaif PRESET [--a.b value]`.

Rounds of: answers of the policy to prompts, verdicts of the prompts' verifiers, pairs of a right and a wrong
answer, DPO on them, accuracy on held-out prompts. Presets are in configs/rlaif.py;
docs/verifiable_preferences.md has the files. The same command continues a run that was stopped or killed, at
any point.
"""

import sys
from collections.abc import Sequence

from configs import cli, rlaif


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse(
        "python -m train.rlaif", rlaif.PRESETS, sys.argv[1:] if argv is None else argv
    )
    # From here on jax is needed: seconds that --help and a mistyped flag must not cost.
    import jax

    from gemma4_jax.compiled_programs import keep_compiled_programs
    from gemma4_jax.distributed import initialize
    from gemma4_jax.errors import UserError, report_user_errors
    from train.verifiable.rounds import run

    with report_user_errors():
        initialize()
        if jax.process_count() > 1:
            raise UserError(
                f"{jax.process_count()} processes: rounds run in one; start train.dpo with several on the "
                "preference file of a round"
            )
        # Every round compiles the programs of the one before.
        keep_compiled_programs()
        try:
            return run(config)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from here")
            return 130


if __name__ == "__main__":
    raise SystemExit(main())
