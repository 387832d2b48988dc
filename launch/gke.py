"""TPU slices of GKE: `python -m launch.gke submit --name n --accelerator tpu-v5p-slice --topology 4x4x4 ...`.

A JobSet of one pod a host, and of several slices. Pods are told to save before they are evicted; the set then
starts them again, and the same command goes on at the next row. GKE tells each pod which worker it is.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from launch.command import Parser, Plan, Run, at_least_one, cluster_parser, finish, read_run, split

# Seconds that a pod has to save after it was told to end.
_GRACE = 300
_LABEL = "jobset.sigs.k8s.io/jobset-name"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    prog = "python -m launch.gke"
    own, words = split(argv)
    parser = cluster_parser(prog, "Runs on TPU slices of GKE (JobSet).")
    parser.add_argument("--accelerator", default="tpu-v5p-slice", help="of the node pool")
    parser.add_argument("--topology", default="2x2x1", help="chips along each axis of a slice")
    parser.add_argument("--chips-per-host", type=at_least_one, default=4)
    parser.add_argument("--slices", type=at_least_one, default=1)
    parser.add_argument("--image", default="", help="with this repository as its working folder")
    parser.add_argument("--volume", default="", metavar="CLAIM", help="that pods mount at /runs")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--restarts", type=int, default=100, help="of the whole set")
    options = parser.parse_args(own)
    run = read_run(prog, words) if options.action == "submit" else None
    if run is not None and not options.image:
        parser.error("--image is missing; it must hold this repository and its environment")
    hosts(options, parser)
    return finish(plan(options, run), options.dry_run)


def hosts(options: argparse.Namespace, parser: Parser) -> int:
    """Hosts of a slice; one line and exit code 2 where the chips do not fill them."""
    parts = options.topology.split("x")
    if not all(part.isdecimal() and int(part) for part in parts) or len(parts) not in (2, 3):
        parser.error(f"--topology is {options.topology!r}; it must be such as 4x4 or 4x4x4")
    chips = math.prod(map(int, parts))
    if chips % options.chips_per_host:
        parser.error(
            f"--topology {options.topology} has {chips} chips; --chips-per-host {options.chips_per_host} "
            "must divide them"
        )
    return chips // options.chips_per_host


def plan(options: argparse.Namespace, run: Run | None) -> Plan:
    """What an action does. run: what to submit."""
    file = (options.folder / f"{options.name}.json").absolute()
    kubectl = ["kubectl", f"--namespace={options.namespace}"]
    delete = [*kubectl, "delete", "jobset", options.name, f"--grace-period={_GRACE}"]
    match options.action:
        case "submit":
            assert run is not None
            text = json.dumps(jobset(options, run), indent=2) + "\n"
            return Plan(files={file: text}, commands=[[*kubectl, "apply", "-f", str(file)]])
        case "resume":
            again = [*delete, "--ignore-not-found"], [*kubectl, "apply", "-f", str(file)]
            return Plan(commands=again)
        case "tail":
            first = f"{_LABEL}={options.name},batch.kubernetes.io/job-completion-index=0"
            return Plan(commands=[[*kubectl, "logs", "-f", "--tail=50", "-l", first]])
        case "status":
            names = f"{_LABEL}={options.name}"
            shown = (
                [*kubectl, "get", "jobset", options.name],
                [*kubectl, "get", "pods", "-l", names],
            )
            return Plan(commands=shown)
        case _:
            return Plan(commands=[delete])


def jobset(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    """The JobSet, as kubectl reads it (JSON is YAML)."""
    workers = hosts(options, cluster_parser("python -m launch.gke", ""))
    container: dict[str, Any] = {
        "name": "run",
        "image": options.image,
        "command": ["bash", "-c", f"exec {run.shell}"],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {"limits": {"google.com/tpu": options.chips_per_host}},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": options.accelerator,
            "cloud.google.com/gke-tpu-topology": options.topology,
        },
        "containers": [container],
    }
    if options.volume:
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": options.volume}}]
        container["volumeMounts"] = [{"name": "runs", "mountPath": "/runs"}]
    job = {
        "parallelism": workers,
        "completions": workers,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    slices = {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
    topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "namespace": options.namespace,
            "annotations": {topology: "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts},
            "replicatedJobs": [slices],
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
