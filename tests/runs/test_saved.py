import json
import shutil
from pathlib import Path
from typing import NoReturn

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from fulldisk import longest_file
from schemabank.adapters.files import BANK_WEIGHTS, WEIGHTS
from schemabank.adapters.peftcheck import PeftCheck
from schemabank.cli import app
from schemabank.common.errors import InputError
from schemabank.common.writing import writing_tensors
from schemabank.config.file import load_run
from schemabank.runs.members import Outcome
from schemabank.runs.saved import evaluate_saved, export_run
from tiny import tiny_model, tiny_tokenizer
from tinyruns import Finished, Notes, snapshot

SHARD = "model.safetensors"

pytestmark = [
    pytest.mark.usefixtures("gsm8k"),
    # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
TOKENS = torch.tensor([[5, 9, 200, 33, 12]])


def evaluated(folder: Path, *overrides: str, out: Path | None = None) -> Outcome:
    (outcome,) = evaluate_saved(folder, overrides, out, Notes())
    return outcome


def losses(folder: Path) -> list[float]:
    rows = (folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(row)["gold_nll_with_end"] for row in rows]


@pytest.mark.parametrize("arm", ["base", "lora", "schemabank"])
def test_routing_off_reproduces_the_runs_own_predictions_byte_for_byte(
    arm: str, finished: Finished, tmp_path: Path
) -> None:
    run: Outcome = getattr(finished, arm)
    outcome = evaluated(run.folder, "eval.routing=off", out=tmp_path / "eval")
    names = {p.name for p in outcome.folder.iterdir()}
    assert names == {"config.yaml", "predictions.jsonl", "result.json"}
    again, own = (f / "predictions.jsonl" for f in (outcome.folder, run.folder))
    assert again.read_bytes() == own.read_bytes()
    assert outcome.result is not None
    assert run.result is not None
    assert outcome.result["groups"] == run.result["groups"]
    assert outcome.result["training"] is None


def test_routing_on_and_dense_measure_something_else(finished: Finished, tmp_path: Path) -> None:
    folder = finished.schemabank.folder
    found = {
        routing: losses(evaluated(folder, f"eval.routing={routing}", out=tmp_path / routing).folder)
        for routing in ("off", "on", "dense")
    }
    assert found["off"] == losses(folder)
    assert found["on"] != found["off"]
    assert found["dense"] != found["off"]
    assert found["dense"] != found["on"]
    trained_with_bank = sum(found["on"])
    assert trained_with_bank < sum(losses(finished.base.folder))


def test_what_a_run_had_come_to_after_a_stage_is_evaluated_like_a_run(
    finished: Finished, tmp_path: Path
) -> None:
    stage = finished.schemabank.folder / "stages" / "2-schemas"
    found = {
        routing: losses(evaluated(stage, f"eval.routing={routing}", out=tmp_path / routing).folder)
        for routing in ("off", "on")
    }
    assert found["off"] != found["on"]
    assert found["off"] != losses(finished.schemabank.folder)
    assert sum(found["on"]) < sum(losses(finished.base.folder))


def test_a_run_that_did_not_finish_is_no_run(finished: Finished, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(finished.schemabank.folder, tmp_path / "run.unfinished-1"))
    (broken / "result.json").unlink()
    with pytest.raises(InputError, match="neither a finished run"):
        evaluated(broken)
    with pytest.raises(InputError, match="neither a finished run"):
        export_run(broken, tmp_path / "out", merge=False)


@pytest.mark.parametrize("arm", ["base", "lora"])
@pytest.mark.parametrize("routing", ["on", "dense"])
def test_routing_without_a_bank_is_an_error(
    arm: str, routing: str, finished: Finished, tmp_path: Path
) -> None:
    run: Outcome = getattr(finished, arm)
    before = snapshot(finished.out)
    with pytest.raises(InputError, match=r"holds no bank .*: allowed is --routing off, or a run"):
        evaluated(run.folder, f"eval.routing={routing}", out=tmp_path / "eval")
    assert snapshot(finished.out) == before
    assert not list(tmp_path.iterdir())


def test_results_are_kept_with_the_run_and_reused(finished: Finished, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    export_run(finished.lora.folder, adapter, merge=False)
    first = evaluated(adapter, "eval.limit=2")
    assert first.folder.parent == adapter / "evals"
    assert first.folder.name.startswith("gsm8k-test-routing-off-")
    assert not first.reused
    before = snapshot(tmp_path)
    notes = Notes()
    (again,) = evaluate_saved(adapter, ["eval.limit=2"], None, notes)
    assert again.reused
    assert again.result == first.result
    assert notes.lines == [f"reused: {first.folder} (same settings, finished)"]
    assert snapshot(tmp_path) == before
    other = evaluated(adapter, "eval.limit=3")
    assert other.folder != first.folder
    same = evaluated(adapter, "eval.limit=2", "engine.device=cpu")
    assert same.reused, "engine settings change no result"


def test_an_exported_adapter_evaluates_as_the_run(finished: Finished, tmp_path: Path) -> None:
    export_run(finished.schemabank.folder, tmp_path / "adapter", merge=False)
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "inputs.json",
        "schemabank.yaml",
    }
    outcome = evaluated(tmp_path / "adapter")
    assert losses(outcome.folder) == losses(finished.schemabank.folder)
    with pytest.raises(InputError, match="holds no bank"):
        evaluated(tmp_path / "adapter", "eval.routing=on")


def test_an_adapter_that_peft_wrote_is_evaluated(finished: Finished, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained(finished.model)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    outcome = evaluated(
        tmp_path / "adapter",
        "task.name=gsm8k",
        "model.dtype=float32",
        "eval.max_new_tokens=8",
        "eval.batch_size=4",
        "eval.split=test",
    )
    assert len(losses(outcome.folder)) == 6
    assert losses(outcome.folder) != losses(finished.base.folder)


def test_few_shot_and_other_settings_reach_the_evaluation(
    finished: Finished, tmp_path: Path
) -> None:
    outcome = evaluated(
        finished.base.folder, "eval.few_shot=2", "eval.limit=1", out=tmp_path / "eval"
    )
    (row,) = (outcome.folder / "predictions.jsonl").read_text().splitlines()
    assert json.loads(row)["prompt"].count("The answer is: ") == 3
    assert outcome.result is not None
    assert outcome.result["few_shot"] == 2


def test_a_folder_that_is_no_run(finished: Finished, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing", finished.out, finished.model):
        with pytest.raises(InputError) as error:
            evaluated(folder)
        assert str(error.value) == (
            f"{str(folder)!r} is neither a finished run (config.yaml and result.json) nor a LoRA "
            "adapter (adapter_config.json): name one of those"
        )
        with pytest.raises(InputError, match="neither a finished run"):
            export_run(folder, tmp_path / "out", merge=False)
    assert not list(tmp_path.iterdir())


def test_bad_settings_leave_nothing_behind(finished: Finished, tmp_path: Path) -> None:
    before = snapshot(finished.out)
    for overrides, message in (
        (["eval.routing=sideways"], "eval.routing is 'sideways'"),
        (["eval.few_shot=99"], "99 few-shot examples"),
        (["model.name=/nowhere"], "'/nowhere' was not found"),
        (["eval.nonsense=1"], "unknown key 'eval.nonsense'"),
    ):
        for out in (None, tmp_path / "new" / "eval"):
            with pytest.raises(InputError, match=message):
                evaluate_saved(finished.lora.folder, overrides, out, Notes())
    assert snapshot(finished.out) == before
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="exists and is not overwritten: choose another --out"):
        evaluated(finished.lora.folder, out=tmp_path / "taken")
    for merge in (False, True):
        with pytest.raises(InputError, match="exists and is not overwritten: choose another --out"):
            export_run(finished.lora.folder, tmp_path / "taken", merge=merge)
    assert [p.name for p in tmp_path.rglob("*")] == ["taken"]


@pytest.mark.parametrize("arm", ["lora", "schemabank"])
def test_exports_give_the_runs_logits(arm: str, finished: Finished, tmp_path: Path) -> None:
    run: Outcome = getattr(finished, arm)
    assert export_run(run.folder, tmp_path / "adapter", merge=False).agrees
    assert export_run(run.folder, tmp_path / "merged", merge=True).agrees
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(finished.model)
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(TOKENS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(TOKENS).logits
        plain = tiny_model("llama")(TOKENS).logits
    torch.testing.assert_close(adapted, merged, rtol=0, atol=1e-5)
    assert (adapted - plain).abs().max() > 1e-2


def test_an_export_can_call_the_base_model_by_its_id(finished: Finished, tmp_path: Path) -> None:
    """Then no file says where the base model lies on this machine."""
    notes = list[str]()
    export_run(finished.lora.folder, tmp_path / "as before", merge=False, note=notes.append)
    assert any("--base-model NAME" in note and str(finished.model) in note for note in notes)
    notes.clear()
    out = tmp_path / "out"
    check = export_run(
        finished.lora.folder, out, merge=False, base_name="org/model", note=notes.append
    )
    assert check.agrees
    assert not any("--base-model" in note for note in notes)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"README.md", "adapter_config.json", "schemabank.yaml"}
    assert not [path for path in files if str(finished.model).encode() in path.read_bytes()]
    assert peft.PeftConfig.from_pretrained(out).base_model_name_or_path == "org/model"
    assert 'from_pretrained("org/model")' in (out / "README.md").read_text()
    assert load_run(out / "schemabank.yaml").model.name == "org/model"


@pytest.mark.parametrize(
    ("name", "merge", "said"),
    [
        ("org/model", True, "--base-model 'org/model' is for an adapter: a merged model names"),
        ("a b", False, "--base-model 'a b' is no id of the hub: allowed is such as Qwen/"),
        ("", False, "--base-model '' is no id of the hub"),
    ],
)
def test_what_a_base_model_cannot_be_called(
    name: str, merge: bool, said: str, finished: Finished, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        export_run(finished.lora.folder, tmp_path / "out", merge=merge, base_name=name)
    assert not list(tmp_path.iterdir())


def test_the_base_has_nothing_to_export(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter to export \(its arm is 'base'\): allowed"):
        export_run(finished.base.folder, tmp_path / "out", merge=False)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_nothing(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemabank.adapters.export.SAFETY", 0)
    for merge in (False, True):
        with pytest.raises(RuntimeError, match="gives other logits in stock PEFT than"):
            export_run(finished.lora.folder, tmp_path / "new" / "out", merge=merge)
    assert not list(tmp_path.iterdir())


def test_every_routing_in_one_evaluation_is_each_on_its_own(
    finished: Finished, tmp_path: Path
) -> None:
    routings = ("off", "on", "dense")
    folder = finished.schemabank.folder
    together = evaluate_saved(folder, [], tmp_path / "all", Notes(), routings=routings)
    assert [o.folder.name for o in together] == [f"routing-{r}" for r in routings]
    for routing, outcome in zip(routings, together, strict=True):
        alone = evaluated(folder, f"eval.routing={routing}", out=tmp_path / f"alone-{routing}")
        for name in ("predictions.jsonl", "result.json"):
            assert (outcome.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    with pytest.raises(InputError, match="bank"):
        evaluate_saved(finished.lora.folder, [], tmp_path / "none", Notes(), routings=routings)
    assert not (tmp_path / "none").exists()


def damaged(file: Path) -> None:
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * float("nan")}, file)


def test_an_export_writes_what_was_read_and_nothing_that_only_lay_there(
    finished: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished.lora.folder, tmp_path / "run"))
    (tmp_path / "secret").write_text("secret")
    (run / "adapter" / "notes.txt").symlink_to(tmp_path / "secret")
    (run / "adapter" / "training_args.bin").write_bytes(b"a pickle")
    export_run(run, tmp_path / "out", merge=False)
    own = finished.lora.folder / "adapter"
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in own.iterdir()
    }


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_that_is_not_finite_is_neither_evaluated_nor_exported(
    merge: bool, finished: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished.lora.folder, tmp_path / "run"))
    damaged(run / "adapter" / WEIGHTS)
    before = snapshot(tmp_path)
    for folder in (run, run / "adapter"):
        with pytest.raises(InputError, match="values that are not finite"):
            evaluated(folder)
        with pytest.raises(InputError, match="values that are not finite"):
            export_run(folder, tmp_path / "out", merge=merge)
    assert snapshot(tmp_path) == before


def test_a_merge_refuses_what_an_evaluation_refuses(finished: Finished, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.model)
    dora = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(model, dora).save_pretrained(tmp_path / "dora")
    with pytest.raises(InputError, match="uses use_dora, allowed is plain LoRA"):
        export_run(tmp_path / "dora", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_a_bank_or_a_stage_that_is_not_finite_is_not_evaluated(
    finished: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished.schemabank.folder, tmp_path / "run"))
    damaged(run / "bank" / BANK_WEIGHTS)
    with pytest.raises(InputError, match="values that are not finite"):
        evaluated(run, "eval.routing=on")
    damaged(run / "stages" / "1-router" / "adapter" / WEIGHTS)
    with pytest.raises(InputError, match="values that are not finite"):
        evaluated(run / "stages" / "1-router")


def test_an_adapter_that_names_no_base_model_needs_one(finished: Finished, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(finished.lora.folder / "adapter", tmp_path / "adapter"))
    (adapter / "schemabank.yaml").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    del config["base_model_name_or_path"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"does not name its base model: .* set model\.name"):
        evaluated(adapter)
    asked = ("task.name=gsm8k", "model.dtype=float32", "eval.limit=1", "eval.max_new_tokens=2")
    assert evaluated(adapter, f"model.name={finished.model}", *asked).result is not None


def test_a_full_disk_ends_a_merge_with_a_sentence_and_leaves_nothing(
    finished: Finished, tmp_path: Path
) -> None:
    place = tmp_path / "out" / "merged"
    with (
        longest_file(60_000),
        pytest.raises(OSError, match=r"cannot write .*large.*: write elsewhere"),
    ):
        export_run(finished.lora.folder, place, merge=True)
    assert not list(tmp_path.iterdir())
    assert export_run(finished.lora.folder, place, merge=True).agrees


def test_a_tokenizer_that_cannot_be_written_is_an_error_of_files(tmp_path: Path) -> None:
    with (
        longest_file(100),
        pytest.raises(OSError, match=r"cannot write .*large.*: write elsewhere"),
        writing_tensors(tmp_path),
    ):
        tiny_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))


def refuses(*_args: object, **_options: object) -> NoReturn:
    raise NotImplementedError("no such layer")


def test_what_stock_peft_cannot_load_is_exported_with_a_warning(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = finished.lora.folder, tmp_path / "out"
    monkeypatch.setattr("peft.PeftModel.from_pretrained", refuses)
    ended = CliRunner().invoke(app, ["export", str(run), "--out", str(out)])
    assert (ended.exit_code, ended.stdout) == (3, f"{out}: written, but not checked\n")
    assert (
        f"warning: {out}: the adapter could not be compared with its run in stock PEFT: "
        "NotImplementedError: no such layer\n"
    ) in ended.stderr
    weights, written = load_file(run / "adapter" / WEIGHTS), load_file(out / WEIGHTS)
    assert weights.keys() == written.keys()
    assert all(torch.equal(weights[name], written[name]) for name in weights)


@pytest.mark.parametrize(("name", "verb"), [("from_pretrained", "load"), ("merge", "merge")])
def test_what_stock_peft_cannot_merge_is_refused(
    name: str, verb: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"from_pretrained": "peft.PeftModel", "merge": "peft.LoraModel"}
    called = {"from_pretrained": name, "merge": "merge_and_unload"}[name]
    monkeypatch.setattr(f"{places[name]}.{called}", refuses)
    with pytest.raises(InputError, match=rf"cannot {verb} the adapter.*no such layer.*without --m"):
        export_run(finished.lora.folder, tmp_path / "out" / "merged", merge=True)
    assert not list(tmp_path.iterdir())


def test_a_merged_model_that_cannot_be_compared_is_written(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemabank.adapters.export._logits", refuses)
    check = export_run(finished.lora.folder, tmp_path / "merged", merge=True)
    assert check == PeftCheck(None, None, "NotImplementedError: no such layer")
    monkeypatch.undo()
    assert export_run(finished.lora.folder, tmp_path / "compared", merge=True).agrees
    first, second = (load_file(tmp_path / n / SHARD) for n in ("merged", "compared"))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_logits_that_are_not_finite_are_no_want_of_a_comparison(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = PeftCheck(None, 1e-13, "its logits are not finite")
    monkeypatch.setattr("schemabank.runs.saved.check_with_peft", lambda *_: found)
    with pytest.raises(RuntimeError, match="its logits are not finite"):
        export_run(finished.lora.folder, tmp_path / "out", merge=False)
    assert not list(tmp_path.iterdir())
