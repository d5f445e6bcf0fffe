"""The scripts of docs/launch.md for clusters that are not here: as far as they run without one."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from docblocks import blocks

# By SkyPilot's documentation of its task files, stable in 2026; those that a recipe may use.
FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "volumes", "setup", "run"}
RESOURCES = {"infra", "accelerators", "cpus", "memory", "use_spot", "job_recovery"}
# By SLURM's manual of sbatch: long names, whose values follow "=".
OPTION = re.compile(r"#SBATCH --(array|gres|time|requeue|open-mode|signal)(=\S+)?")


def recipe(name: str) -> str:
    return next(b for b in blocks("docs/launch.md") if b.mark == f"example: {name}").body


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The script, beside programs that stand for those it calls."""
    script = tmp_path / "suite.sbatch"
    script.write_text(recipe("suite.sbatch"))
    program(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/requeued')
    program(
        tmp_path,
        "schemabank",
        'trap "sleep 0.3; exit 143" TERM\n'
        f"touch {tmp_path}/begun\n"
        "{ sleep 30 & wait; } 2> /dev/null",
    )
    return script


def started(job: Path) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join((str(job.parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "71"}
    return subprocess.Popen(["bash", str(job)], env=environment, start_new_session=True)


def test_a_job_whose_time_is_over_saves_and_is_queued_again(job: Path) -> None:
    subprocess.run(["bash", "-n", str(job)], check=True)
    shell, until = started(job), time.monotonic() + 60
    try:
        while not (job.parent / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        shell.send_signal(signal.SIGTERM)  # to the shell alone, as B: asks for
        assert shell.wait(60) == 143
        assert (job.parent / "requeued").read_text() == "requeue 71\n"
    finally:
        with suppress(ProcessLookupError):  # nobody of the group is left
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_has_ended_by_itself_is_not_queued_again(code: int, job: Path) -> None:
    program(job.parent, "schemabank", f"exit {code}")
    assert started(job).wait(60) == code
    assert not (job.parent / "requeued").exists()


def test_the_options_of_slurm_come_before_all_else(job: Path) -> None:
    first, *rest = job.read_text().splitlines()
    assert first == "#!/bin/bash"
    options = [line for line in rest if line.startswith("#SBATCH")]
    assert rest[: len(options)] == options, "sbatch reads none behind the first command"
    assert [line for line in options if OPTION.fullmatch(line) is None] == []


def test_the_task_of_skypilot_has_the_fields_that_it_knows() -> None:
    task = yaml.safe_load(recipe("suite.sky.yaml"))
    assert task.keys() <= FIELDS
    assert task["resources"].keys() <= RESOURCES
    (mounted,) = task["volumes"]
    assert f"--out {mounted}/" in task["run"]
    for name in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[name]], check=True)
