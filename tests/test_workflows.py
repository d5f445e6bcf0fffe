"""What the code host runs: commands that are there, and no more rights than are needed."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOST = ROOT / ".github"
WORKFLOWS = sorted((HOST / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
# An action of one owner, at a version.
ACTION = re.compile(r"(actions|pypa)/[a-z-]+@(v\d+|release/v\d+)")
PYTHON = re.compile(r"Programming Language :: Python :: (3\.\d+)")

pytestmark = pytest.mark.skipif(not HOST.is_dir(), reason="a source distribution has none")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def targets(workflow: dict[str, Any]) -> list[str]:
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    said = [step["run"].split() for step in steps if step.get("run", "").startswith("make ")]
    return [target for _, *called in said for target in called]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there_with_few_rights(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    made = targets(workflow)
    assert made
    assert set(made) <= TARGETS
    used = [step["uses"] for step in steps if "uses" in step]
    assert [name for name in used if not ACTION.fullmatch(name)] == []


def test_what_every_change_and_every_release_must_pass_is_run() -> None:
    made = {path.stem: targets(read(path)) for path in WORKFLOWS}
    assert {"lint", "type", "test"} <= set(made["test"])
    assert made["wheel"] == ["wheel-check"]
    assert made["release"].index("wheel-check") > made["release"].index("release")


@pytest.mark.parametrize("name", ["test", "wheel"])
def test_a_workflow_has_the_oldest_python_and_the_newest_that_was_tried(name: str) -> None:
    ((job,),) = ([*read(path)["jobs"].values()] for path in WORKFLOWS if path.stem == name)
    matrix = job["strategy"]["matrix"]
    run = matrix.get("python") or [each["python"] for each in matrix["include"]]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [PYTHON.fullmatch(each) for each in declared["classifiers"]]
    known = sorted((each[1] for each in named if each), key=lambda each: int(each.split(".")[1]))
    assert run == [known[0], known[-1]]
    assert declared["requires-python"] == f">={known[0]}"
    rows = json.loads((ROOT / "results" / "wheel.json").read_text(encoding="utf-8"))["rows"]
    assert {row["python"].rpartition(".")[0] for row in rows} >= {*known}


def test_only_the_upload_may_ask_for_a_token_and_it_runs_nothing_of_ours() -> None:
    (release,) = [read(path) for path in WORKFLOWS if path.stem == "release"]
    assert {name for name, job in release["jobs"].items() if "permissions" in job} == {"upload"}
    upload = release["jobs"]["upload"]
    assert (upload["needs"], upload["permissions"]) == ("build", {"id-token": "write"})
    assert [step for step in upload["steps"] if "run" in step] == []


@pytest.mark.parametrize("path", sorted(HOST.glob("ISSUE_TEMPLATE/*.yml")), ids=lambda p: p.stem)
def test_a_form_for_issues_has_what_the_host_requires(path: Path) -> None:
    form = read(path)
    if path.stem == "config":
        assert form.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert form.keys() >= {"name", "description", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields) > 0
