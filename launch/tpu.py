"""Cloud TPU: `python -m launch.tpu submit --name n --accelerator v5p-128 --zone z --bucket gs://b -- ...`.

A queued resource whose hosts fetch this repository's HEAD from a bucket when they boot, install it, and run. A
slice that was taken away is asked for again by `resume`; the same command goes on at the next row.
"""

import argparse
import shlex
from collections.abc import Sequence

from launch.command import ROOT, Parser, Plan, Run, cluster_parser, finish, read_run, split

_SCRIPT = """\
#!/usr/bin/env bash
# Runs on every host, at every boot.
set -euo pipefail
home=/opt/{name}
mkdir -p "$home" /runs
cd "$home"
gcloud storage cp {source} source.tar.gz
tar xzf source.tar.gz
test -x .venv/bin/python || python3 -m venv .venv
.venv/bin/pip install -q -e '.[tpu]'
mountpoint -q /runs || gcsfuse --implicit-dirs {bucket} /runs
# A unit of its own: it is told to save, and waited for, when the host shuts down.
systemd-run --unit={name} --working-directory="$home" --property=TimeoutStopSec=300 \\
  --property=KillMode=mixed --setenv=PATH="$home/.venv/bin:$PATH" \\
  --setenv=GEMMA4_PROCESSES=auto {command}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    prog = "python -m launch.tpu"
    own, words = split(argv)
    parser = cluster_parser(prog, "Runs on queued resources of Cloud TPU.")
    parser.add_argument("--accelerator", default="v5p-128", help="type and size of the slice")
    parser.add_argument("--runtime", default="", help="version; default: that of the accelerator")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="default: gcloud's own")
    parser.add_argument(
        "--bucket", default="", metavar="gs://NAME", help="for code; /runs on hosts"
    )
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    options = parser.parse_args(own)
    options.runtime = options.runtime or _runtime(options.accelerator, parser)
    run = read_run(prog, words) if options.action == "submit" else None
    if run is not None and not options.bucket.removeprefix("gs://"):
        parser.error("--bucket is missing; hosts fetch the code from it and keep runs in it")
    return finish(plan(options, run), options.dry_run)


def _runtime(accelerator: str, parser: Parser) -> str:
    """The runtime version that Google's documentation names for a kind of TPU."""
    known = {
        "v4": "tpu-ubuntu2204-base",
        "v5p": "v2-alpha-tpuv5",
        "v5litepod": "v2-alpha-tpuv5-lite",
        "v6e": "v2-alpha-tpuv6e",
    }
    kind = accelerator.split("-")[0]
    if kind not in known:
        parser.error(f"no runtime known for {accelerator!r} (known: {', '.join(known)}); --runtime")
    return known[kind]


def plan(options: argparse.Namespace, run: Run | None) -> Plan:
    """What an action does. run: what to submit."""
    folder, name = options.folder.absolute(), options.name
    where = [f"--zone={options.zone}"]
    where += [f"--project={options.project}"] if options.project else []
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, *where]
    create = [*queued, "create", name, f"--node-id={name}", *where]
    create += [f"--accelerator-type={options.accelerator}", f"--runtime-version={options.runtime}"]
    create += ["--spot"] if options.spot else []
    create += [f"--metadata-from-file=startup-script={folder / f'{name}.sh'}"]
    delete = [*queued, "delete", name, *where, "--force", "--quiet"]
    match options.action:
        case "submit":
            assert run is not None
            archive, source = folder / f"{name}.tar.gz", _source(options)
            pack = [
                "git",
                "-C",
                str(ROOT),
                "archive",
                "--format=tar.gz",
                f"--output={archive}",
                "HEAD",
            ]
            upload = ["gcloud", "storage", "cp", str(archive), source]
            files = {folder / f"{name}.sh": script(options, run)}
            return Plan(files=files, commands=[pack, upload, create])
        case "resume":
            return Plan(commands=[delete, create])
        case "tail":
            follow = f"sudo journalctl --unit={name} --lines=50 --follow"
            return Plan(commands=[[*ssh, "--worker=0", f"--command={follow}"]])
        case "status":
            return Plan(commands=[[*queued, "describe", name, *where]])
        case _:
            # Returns when the run has saved and left.
            end = f"sudo systemctl stop {name}"
            return Plan(commands=[[*ssh, "--worker=all", f"--command={end}"], delete])


def script(options: argparse.Namespace, run: Run) -> str:
    """What a host does when it boots."""
    return _SCRIPT.format(
        name=options.name,
        source=shlex.quote(_source(options)),
        bucket=shlex.quote(options.bucket.removeprefix("gs://")),
        command=run.shell,
    )


def _source(options: argparse.Namespace) -> str:
    bucket: str = options.bucket.removeprefix("gs://")
    return f"gs://{bucket}/code/{options.name}.tar.gz"


if __name__ == "__main__":
    raise SystemExit(main())
