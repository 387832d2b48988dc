"""Starting runs where they belong: processes of this machine, a SLURM cluster, TPU slices of GKE.

Every launcher takes its own flags, then `--` and the run: `python -m launch.slurm submit --nodes 4 -- train.sft
31b --data.path rows.jsonl`. The run is read as it would read itself, so that a typo costs no place in a queue.
Imports the standard library and `configs` alone.
"""
