import errno
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors.torch import load_file, save_file

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.config.task import TaskSettings
from schemabank.models import digests
from schemabank.models.files import Located
from schemabank.runs.experiment import run_experiment
from schemabank.runs.folder import PREDICTIONS, RESULT
from schemabank.runs.inputs import INPUTS, data_digest, recorded_in
from schemabank.runs.members import Outcome
from schemabank.runs.saved import evaluate_saved, export_run
from schemabank.tasks.base import Example, TaskData, Turn
from schemabank.tasks.catalog import load_task
from tinyruns import Notes, write_config, write_gsm8k, write_model

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@dataclass(frozen=True)
class Place:
    """A finished run of LoRA; tests put back what they change."""

    model: Path
    data: Path
    config: Path
    out: Path
    run: Path

    def again(self) -> tuple[Outcome, list[str]]:
        notes = Notes()
        (outcome,) = run_experiment(load_experiment(self.config), self.out, notes)
        return outcome, notes.lines

    def evaluated(self, *overrides: str, folder: Path | None = None) -> list[str]:
        notes = Notes()
        evaluate_saved(folder or self.run, ["eval.limit=1", *overrides], None, notes)
        return notes.lines


@pytest.fixture(scope="module")
def module_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("inputs")
    model, data = write_model(root / "model"), write_gsm8k(root / "data", num_train=8, num_test=2)
    config = write_config(
        root / "tiny.yaml", model, arm="lora", train={"num_train_epochs": 1}, eval={"limit": 1}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(data))
        (outcome,) = run_experiment(load_experiment(config), root / "runs", Notes())
    assert outcome.result is not None
    return Place(model, data, config, root / "runs", outcome.folder)


@pytest.fixture
def place(module_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("SCHEMABANK_DATA", str(module_place.data))
    return module_place


@contextmanager
def changed(path: Path) -> Iterator[Path]:
    """Give a file to change, and put it back."""
    content = path.read_bytes()
    try:
        yield path
    finally:
        path.write_bytes(content)


def reweighted(path: Path) -> None:
    """Change one weight; the file keeps its length."""
    before, weights = path.stat().st_size, load_file(path)
    weights["model.norm.weight"][3] += 0.5
    save_file(weights, path, metadata={"format": "pt"})
    assert path.stat().st_size == before


def test_a_run_and_its_adapter_carry_digests_of_what_they_were_made_from(place: Place) -> None:
    recorded = recorded_in(json.loads((place.run / RESULT).read_text()))
    assert recorded.keys() == {"model", "tokenizer", "data"}
    assert all(value.startswith("sha256:") for value in recorded.values())
    assert len(set(recorded.values())) == 3
    beside = json.loads((place.run / "adapter" / INPUTS).read_text())
    assert beside == {name: recorded[name] for name in ("model", "tokenizer")}


def test_a_chat_without_tools_has_the_digest_that_it_had_before_there_were_tools() -> None:
    def digest(*turns: Turn, tools: str = "") -> str:
        chat = Example("e/1", "q", "4", "4", turns=turns, tools=tools)
        return data_digest(TaskData(train=[chat], validation=[], test=[]))

    turns = Turn("user", "hi"), Turn("assistant", "4", learned=True)
    old = "7904aa6ca9b46744e86ddfae279d93444cdb850b849a4c15b9e5b920e83225bc"
    assert digest(*turns) == f"sha256:{old}"
    others = digest(*turns, tools="[]"), digest(turns[0], turns[1]._replace(extra="{}"))
    assert len({old, *others}) == 3


def test_generated_data_have_the_digest_that_they_had_before_they_had_clusters() -> None:
    """The record of the quickstart has it; a cluster that a user's column names is part of it."""
    generated = load_task(TaskSettings(name="conditional"))
    examples = [replace(e, cluster="") for e in generated.test]
    before = TaskData(train=[], validation=[], test=examples)
    now = replace(generated, train=[], validation=[])
    assert data_digest(now) == data_digest(before)
    assert data_digest(replace(now, cluster_field=None)) != data_digest(before)


def test_a_run_that_lacks_clusters_is_not_reused_and_its_adapter_is(
    place: Place, tmp_path: Path
) -> None:
    sizes = {"train_size": 8, "validation_size": 4, "test_size": 4}
    task = {"name": "conditional", "max_length": 512, "conditional": sizes}
    train, limit = {"num_train_epochs": 1}, {"limit": 2}
    config = write_config(
        tmp_path / "own.yaml", place.model, arm="lora", task=task, train=train, eval=limit
    )
    own = replace(place, config=config, out=tmp_path / "runs")
    made, _ = own.again()
    own = replace(own, run=made.folder)
    assert own.again()[0].reused
    path = own.run / PREDICTIONS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["cluster"] for row in rows)
    path.write_text("".join(json.dumps({**row, "cluster": ""}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"items of conditional with one word .* another --out"):
        own.again()
    own.evaluated("eval.max_new_tokens=2")
    (asked,) = (own.run / "evals").iterdir()
    assert '"cluster": ""' not in (asked / PREDICTIONS).read_text()
    shutil.copy(path, asked / PREDICTIONS)
    with pytest.raises(InputError, match=r"with one word .* name a new folder with --out"):
        own.evaluated("eval.max_new_tokens=2")


def test_other_weights_in_the_same_place_are_refused_everywhere(
    place: Place, tmp_path: Path
) -> None:
    export_run(place.run, tmp_path / "adapter", merge=False)
    adapter = tmp_path / "adapter"
    assert any("evaluate" in line for line in place.evaluated(folder=adapter))
    message = (
        r"the base model is not the one that .* it was sha256:.*…, now it is sha256:.*restore it"
    )
    with changed(place.model / "model.safetensors") as weights:
        reweighted(weights)
        with pytest.raises(InputError, match=message):
            place.again()
        for folder in (place.run, adapter):
            with pytest.raises(InputError, match=message):
                place.evaluated(folder=folder)
            with pytest.raises(InputError, match=message):
                place.evaluated("model.dtype=float32", folder=folder)
            for merge in (False, True):
                with pytest.raises(InputError, match=message):
                    export_run(folder, tmp_path / "out", merge=merge)
        said = place.evaluated(f"model.name={place.model}", "eval.max_new_tokens=2")
        assert any("--set changes the base model" in line for line in said)
    outcome, _ = place.again()
    assert outcome.reused


def test_another_adapter_in_the_same_place_is_not_taken_for_the_one_evaluated(
    place: Place,
) -> None:
    place.evaluated("eval.max_new_tokens=3")
    assert any(line.startswith("reused") for line in place.evaluated("eval.max_new_tokens=3"))
    with changed(place.run / "adapter" / "adapter_model.safetensors") as weights:
        tensors = load_file(weights)
        save_file({name: tensor + 0.3 for name, tensor in tensors.items()}, weights)
        with pytest.raises(InputError, match="the adapter is not the one that"):
            place.evaluated("eval.max_new_tokens=3")


def test_another_data_file_in_the_same_place_is_refused(place: Place) -> None:
    with changed(place.data / "gsm8k" / "train.jsonl.gz") as path:
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(text.replace("add 1 and", "sum 1 and").encode()))
        for again in (place.again, place.evaluated):
            with pytest.raises(InputError, match="the task's data is not the one that"):
                again()
        with pytest.raises(InputError, match="the task's data is not the one that"):
            place.evaluated("task.prompt='Q: {question} A: '")
        said = place.evaluated("task.gsm8k.validation_ratio=0.2")
        assert any("its training may have seen some of them" in line for line in said)
    outcome, _ = place.again()
    assert outcome.reused


def test_a_model_or_task_that_is_named_in_a_section_is_named_on_purpose(
    place: Place, tmp_path: Path
) -> None:
    other = shutil.copytree(place.model, tmp_path / "other")
    reweighted(other / "model.safetensors")
    said = place.evaluated(f"model={{name: {other}, dtype: float32}}")
    assert any("--set changes the base model" in line for line in said)
    said = place.evaluated("task={name: gsm8k, gsm8k: {validation_ratio: 0.3}}")
    assert any("--set changes the examples" in line for line in said)


def test_another_tokenizer_in_the_same_place_is_refused(place: Place) -> None:
    with changed(place.model / "tokenizer.json") as path:
        path.write_text(path.read_text() + " ")
        with pytest.raises(InputError, match="the tokenizer is not the one that"):
            place.again()


def test_a_run_on_records_is_evaluated_with_another_prompt(place: Place, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [{"q": f"{split} {i} and 1", "answer": str(i + 1)} for i in range(6)]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "records", "prompt": "{q} is ", "records": {"path": str(data)}}
    config = write_config(
        tmp_path / "own.yaml",
        place.model,
        arm="lora",
        task=task,
        train={"num_train_epochs": 1},
        eval={"limit": 1, "split": "validation"},
    )
    (outcome,) = run_experiment(load_experiment(config), tmp_path / "runs", Notes())
    said = place.evaluated("task.prompt='Add {q}: '", folder=outcome.folder)
    assert any("--set changes the examples" in line for line in said)
    (asked,) = (outcome.folder / "evals").iterdir()
    assert "Add validation 0 and 1: " in (asked / PREDICTIONS).read_text()
    (data / "train.jsonl").write_text('{"q": "1", "answer": "1"}')
    with pytest.raises(InputError, match=r"the data of .* has changed"):
        place.evaluated("task.prompt='Sum {q}: '", folder=outcome.folder)


def test_a_date_and_a_file_that_is_not_read_change_nothing(place: Place) -> None:
    for path in place.model.iterdir():
        os.utime(path, (1, 1))
    (place.model / "README.md").write_text("changed")
    outcome, notes = place.again()
    assert outcome.reused
    assert not any("compared" in line for line in notes)


def test_a_run_without_digests_is_reused_and_that_is_said(place: Place) -> None:
    with changed(place.run / RESULT) as path, changed(place.run / "adapter" / INPUTS) as beside:
        result = json.loads(path.read_text())
        del result["inputs"]
        path.write_text(json.dumps(result))
        beside.write_text("{}")
        outcome, notes = place.again()
        assert outcome.reused
        assert "1 of 1 reused runs: made before the model and the data were recorded" in str(notes)
        said = place.evaluated("eval.max_new_tokens=3")
        assert any("was made before the model and the data were recorded" in s for s in said)


def test_a_run_whose_model_is_gone_is_reused_and_that_is_said(place: Place) -> None:
    place.model.rename(place.model.with_name("away"))
    try:
        outcome, notes = place.again()
    finally:
        place.model.with_name("away").rename(place.model)
    assert outcome.reused
    assert "1 of 1 reused runs: the base model could not be compared" in str(notes)


def test_an_evaluation_is_reused_for_the_same_inputs_alone(place: Place) -> None:
    asked = ("eval.max_new_tokens=5", f"model.name={place.model}")
    place.evaluated(*asked)
    assert "reused" in place.evaluated(*asked)[-1]
    with changed(place.model / "model.safetensors") as weights:
        reweighted(weights)
        with pytest.raises(InputError, match=r"evals.* name a new folder with --out"):
            place.evaluated(*asked)


def test_a_large_file_is_hashed_again_when_it_changes_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    plain = digests.sha256

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return plain(path)

    monkeypatch.setattr(digests, "sha256", counting)
    monkeypatch.setattr(digests, "HASHED_EVERY_TIME", 0)
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(digests, "cached_assets_path", lambda *_, **__: cache)
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(b"a" * 100)
    located = Located(str(folder), None, "")
    first = digests.model_digests(located)
    assert digests.model_digests(located) == first
    assert hashed == [path.name]
    before = path.stat()
    with path.open("r+b") as file:  # in place, as long as it was, with its old date
        file.write(b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.model_digests(located)["model"] != first["model"]


@pytest.mark.parametrize("below_a_file", [True, False])
def test_a_model_is_hashed_where_no_hash_can_be_kept(
    below_a_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in a place that is none, or that may not be written."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"a" * 100)
    located = Located(str(folder), None, "")
    expected = digests.model_digests(located)
    monkeypatch.setattr(digests, "HASHED_EVERY_TIME", 0)
    if below_a_file:
        place = str(folder / "model.safetensors" / "cache")
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", place)
    else:

        def refuse(*_args: object, **_options: object) -> NoReturn:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(digests, "cached_assets_path", refuse)
    assert digests.model_digests(located) == expected


def test_a_damaged_hash_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "HASHED_EVERY_TIME", 0)
    monkeypatch.setattr(digests, "cached_assets_path", lambda *_, **__: tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"a" * 100)
    located = Located(str(tmp_path / "model"), None, "")
    first = digests.model_digests(located)
    (kept,) = [path for path in tmp_path.iterdir() if path.is_file()]
    for damaged in (b"", b"\xff", kept.read_bytes()[:40]):
        kept.write_bytes(damaged)
        assert digests.model_digests(located) == first


def test_a_model_of_the_hub_is_its_commit() -> None:
    located = Located("owner/name", "owner/name", "", revision="0123abc")
    assert digests.model_digests(located) == {
        "model": "owner/name@0123abc",
        "tokenizer": "owner/name@0123abc",
    }
