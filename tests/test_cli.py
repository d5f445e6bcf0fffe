import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ourconfigs import CONFIGS
from programs import started
from schemabank import __version__
from schemabank.cli import main
from schemabank.common.quiet import DATASETS, HUB, TQDM
from schemabank.config.file import load_experiment
from schemabank.engine.loss import mean_per_slot
from schemabank.runs.experiment import run_experiment
from schemabank.runs.progress import reporter
from tinyruns import SETTINGS, Finished, Notes, snapshot, write_config, write_gsm8k

PROGRAM = [sys.executable, "-c", "from schemabank.cli import main; main()"]
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7])(?:;\d+)*m")

HELP_SCRIPT = """
import sys
from schemabank.cli import main
for command in (["--help"], *([c, "--help"] for c in sys.argv[1:])):
    sys.argv = ["schemabank", *command]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, command
heavy = {"torch", "transformers", "peft", "datasets", "numpy", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
HOLD_SCRIPT = """
import sys
from pathlib import Path
from schemabank.runs.folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def training(
    finished: Finished, out: Path, said: Path, options: Sequence[str]
) -> ForkServerProcess:
    """Start to train in a process of its own; what it says on stderr goes into a file."""
    command = ["train", str(finished.config), "--out", str(out), *options]
    with said.open("wb") as stderr, Path(os.devnull).open("wb") as quiet:
        return started(command, os.environ, stdout=quiet.fileno(), stderr=stderr.fileno())


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error on stderr; there is exactly one, on one line, and it comes last."""
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("schemabank: ")] == lines[-1:], self.err
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("schemabank: ")


Program = Callable[..., Ended]


@pytest.fixture
def schemabank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Program:
    """Run the program in an empty folder of its own, without a hub."""
    (tmp_path / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["schemabank", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def untouched(finished: Finished, tmp_path: Path) -> Iterator[None]:
    """Neither the test's folder nor the finished runs may change during the test."""
    (tmp_path / "cwd").mkdir(exist_ok=True)
    before = snapshot(tmp_path), snapshot(finished.out)
    yield
    assert (snapshot(tmp_path), snapshot(finished.out)) == before


@pytest.mark.usefixtures("untouched", "gsm8k")
class TestBadInput:
    @pytest.mark.parametrize(
        ("override", "sentence"),
        [
            (
                "train.lerning_rate=1",
                r"--set: unknown key 'train\.lerning_rate', did you mean 'train\.learning_rate'\? "
                r"\(allowed are num_train_epochs, .*\)",
            ),
            (
                "learning_rate=1",
                r"unknown key 'learning_rate', did you mean 'train\.learning_rate'",
            ),
            (
                "train.batch_size=four",
                r"--set: train\.batch_size is 'four', but input should be a valid integer.*change",
            ),
            ("train.learning_rate=-1", r"is -1, but input should be greater than 0: change it"),
            ("eval.routing=sideways", r"is 'sideways', but input should be 'off', 'on' or 'dense'"),
            (
                "bank.top_k=9",
                r"top_k is 9, allowed is 1 to num_schemas = 8: lower top_k or raise num_schemas",
            ),
            (
                "bank.last_n=4",
                r"bank\.last_n is 4, but the model has 3 blocks: allowed is 1 to 3, lower it",
            ),
            (
                "lora.target_modules=[query]",
                r"names 'query', which matches no linear layer: allowed are down_proj, .*v_proj, "
                r"name some of those",
            ),
            ("task.max_length=15", r"has 15 tokens, .*allowed is at least 16, raise the limit"),
            ("nonsense", r"--set 'nonsense' is not KEY=VALUE: write it like train\.learning_rate"),
            ("a: b=[", r"the value is not valid YAML"),
            ("engine.device=tpu", r"engine\.device is 'tpu', but .*'auto', 'cpu' or 'cuda'"),
        ],
    )
    def test_settings(
        self, override: str, sentence: str, schemabank: Program, finished: Finished
    ) -> None:
        ended = schemabank("train", finished.config, "--set", override)
        assert ended.code == 2
        assert ended.out == ""
        assert re.search(sentence, ended.sentence), ended.sentence

    def test_a_model_that_is_not_there(self, schemabank: Program, finished: Finished) -> None:
        ended = schemabank("train", finished.config, "--set", "model.name=no/such-model")
        assert ended.code == 2
        assert "'no/such-model' was not found: there is no folder " in ended.sentence
        assert "it is none of the embedded models smollm2-135m-instruct" in ended.sentence
        assert "HF_HUB_OFFLINE forbids asking the hub and the cache in " in ended.sentence

    def test_data_that_is_not_there(
        self,
        schemabank: Program,
        finished: Finished,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("SCHEMABANK_DATA", str(tmp_path))
        ended = schemabank("train", finished.config)
        assert ended.code == 2
        for part in (f"{tmp_path}/gsm8k/train.jsonl.gz", "SCHEMABANK_DATA", "put the upstream"):
            assert part in ended.sentence

    def test_files_that_are_not_there(self, schemabank: Program, finished: Finished) -> None:
        for arguments in (
            ["train", "nowhere.yaml"],
            ["score", "gsm8k", "nowhere.jsonl"],
            ["eval", "nowhere"],
            ["export", "nowhere", "--out", "new"],
        ):
            ended = schemabank(*arguments)
            assert ended.code == 2
            assert "'nowhere" in ended.sentence
            assert ": name " in ended.sentence
        assert schemabank("eval", finished.model).code == 2

    def test_an_existing_folder(self, schemabank: Program, finished: Finished) -> None:
        for arguments in (["export"], ["export", "--merge"], ["eval"]):
            ended = schemabank(*arguments, finished.lora.folder, "--out", finished.out)
            assert ended.code == 2
            assert ended.sentence == (
                f"'{finished.out}' exists and is not overwritten: choose another --out"
            )

    @pytest.mark.parametrize("command", ["train", "eval", "export"])
    def test_a_file_where_a_folder_belongs(
        self, command: str, schemabank: Program, finished: Finished
    ) -> None:
        source = finished.config if command == "train" else finished.lora.folder
        out = finished.config / "inside"
        ended = schemabank(command, source, "--out", out)
        assert ended.code == 2
        assert ended.sentence == (
            f"cannot write to {str(out if command == 'train' else out.parent)!r} "
            f"({str(finished.config)!r} is not a folder): allowed is a folder that you may write "
            "to, choose another --out"
        )

    def test_an_out_that_is_a_file(self, schemabank: Program, finished: Finished) -> None:
        ended = schemabank("train", finished.config, "--out", finished.config)
        assert ended.code == 2
        assert "is not a folder): allowed is a folder that you may write to" in ended.sentence

    def test_routing_without_a_bank(self, schemabank: Program, finished: Finished) -> None:
        ended = schemabank("eval", finished.lora.folder, "--routing", "on")
        assert ended.code == 2
        assert "holds no bank" in ended.sentence
        assert "allowed is --routing off, or a run of the arm schemabank" in ended.sentence

    def test_options_that_do_not_exist(self, schemabank: Program, finished: Finished) -> None:
        for arguments in (
            ["train"],
            ["train", finished.config, "--nonsense"],
            ["eval", finished.lora.folder, "--routing", "sideways"],
            ["eval", finished.lora.folder, "--limit", "0"],
            ["score", "poetry", "file"],
            ["nonsense"],
        ):
            ended = schemabank(*arguments)
            assert ended.code == 2
            assert "Traceback" not in ended.err
            assert ended.out == ""


class TestBadInputInFiles:
    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("arm: lora\ntrian: {}\n", r"c\.yaml:2: unknown key 'trian', did you mean 'train'\?"),
            ("arm: lora\n\nseed: x\n", r"c\.yaml:3: seed is 'x', but "),
            ("arm: lora\nbank: {top_k: 33}\n", r"c\.yaml:2: .*top_k is 33, allowed is 1 to "),
            ("arm: [lora\n", r"c\.yaml is not valid YAML"),
            ("curriculum: [{ratio: 1}]\n", r"curriculum\.0\.name is missing: add it"),
            ("- 1\n", "holds a list, allowed are keys and values"),
            ("preset: best\narm: lora\n", r"c\.yaml:1: preset is 'best', allowed are sound, paper"),
        ],
    )
    def test_a_configuration(self, text: str, sentence: str, schemabank: Program) -> None:
        Path("c.yaml").write_text(text)
        before = snapshot(Path())
        ended = schemabank("train", "c.yaml")
        assert ended.code == 2
        assert re.search(sentence, ended.sentence), ended.sentence
        assert snapshot(Path()) == before

    @pytest.mark.parametrize(
        ("line", "sentence"),
        [
            ("{", "line 3: '{' is not valid JSON "),
            ("[1]", "line 3: '[1]' is not a JSON object; each line must be one "),
            ('{"gold": "1"}', "line 3: key 'completion' is missing, the line has 'gold': add "),
            ('{"completion": "1", "gold": null}', "line 3: 'gold' is None, only text or a number "),
        ],
    )
    def test_a_malformed_line(self, line: str, sentence: str, schemabank: Program) -> None:
        Path("rows.jsonl").write_text('{"completion": "1", "gold": 1}\n\n' + line + "\n")
        before = snapshot(Path())
        ended = schemabank("score", "gsm8k", "rows.jsonl")
        assert (ended.code, ended.out) == (2, "")
        assert ended.sentence.startswith(sentence)
        assert snapshot(Path()) == before

    @pytest.mark.usefixtures("gsm8k")
    def test_a_folder_in_use_by_another_run(
        self, schemabank: Program, finished: Finished, tmp_path: Path
    ) -> None:
        folder = tmp_path / "runs" / finished.lora.folder.name
        with subprocess.Popen(
            [sys.executable, "-c", HOLD_SCRIPT, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            before = snapshot(tmp_path)
            ended = schemabank("train", finished.config, "--out", folder.parent)
            assert snapshot(tmp_path) == before
            holder.communicate("")
        assert ended.code == 2
        assert ended.sentence == (
            f"{str(folder)!r} is in use by another run that is still going: wait for it to end or "
            "choose another --out"
        )
        assert not folder.parent.exists(), "the other process left nothing"


@pytest.mark.usefixtures("gsm8k")
class TestTrain:
    def test_results_go_to_stdout_and_notes_to_stderr(
        self, schemabank: Program, finished: Finished
    ) -> None:
        before = snapshot(finished.out)
        ended = schemabank("train", finished.config, "--out", finished.out)
        assert ended.code == 0
        adapters = [
            f"adapter: {o.folder / 'adapter'}" for o in (finished.lora, finished.schemabank)
        ]
        assert ended.out.splitlines()[-2:] == adapters
        for text in ("base", "lora", "schemabank", "always answer 100", "6 all"):
            assert re.search(rf"(^| ) *{re.escape(text)} ", ended.out, flags=re.MULTILINE)
        assert "reused" not in ended.out
        unequal = [line for line in ended.out.splitlines() if line.startswith("unequal: ")]
        assert "rates were not tried for each arm (0.01 for schemabank and 0.01 for" in unequal[0]
        assert unequal[1].endswith(
            "schemabank and lora have different numbers of updates of LoRA: 13 and 18."
        )
        assert "trained parameters" in unequal[2]
        folders = [o.folder for o in (finished.base, finished.lora, finished.schemabank)]
        notes = [f"reused: {folder} (same configuration, finished)" for folder in folders]
        assert ended.err.splitlines() == notes
        assert snapshot(finished.out) == before

    def test_the_default_place_is_named_after_the_configuration(
        self, schemabank: Program, finished: Finished
    ) -> None:
        ended = schemabank("train", finished.config, "--set", "arm=lora")
        assert ended.code == 0
        folder = Path("runs") / "tiny" / finished.lora.folder.name
        assert ended.out.splitlines()[-1] == f"adapter: {folder / 'adapter'}"
        assert (folder / "result.json").read_text() == (
            finished.lora.folder / "result.json"
        ).read_text()
        assert "18 steps, training about" in ended.err
        assert "unequal: " not in ended.out
        assert "no effect: bank.num_schemas, bank.rank, " in ended.err.splitlines()[0]
        assert "(the arm lora has neither bank nor stages)" in ended.err.splitlines()[0]

    @pytest.mark.parametrize(("arms", "code"), [("lora", 1), ("[base, lora]", 3)])
    def test_failed_runs_are_never_swallowed(
        self,
        arms: str,
        code: int,
        schemabank: Program,
        finished: Finished,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(
            "schemabank.engine.step.mean_per_slot",
            lambda losses, weights: mean_per_slot(losses, weights) * torch.nan,
        )
        ended = schemabank("train", finished.config, "--set", f"arm={arms}")
        assert ended.code == code
        folder = Path("runs") / "tiny" / f"{finished.lora.folder.name}.unfinished-1"
        reason = "loss or gradient not finite in 2 of the 18 steps of the run (allowed: 1), up to"
        last = ended.err.splitlines()[-1]
        assert last.startswith(f"failed: {folder}: diverged: {reason}")
        assert re.search(rf"{folder.name} +failed: diverged", ended.out)
        assert "adapter:" not in ended.out

    def test_a_runtime_error_is_one_sentence(
        self, schemabank: Program, finished: Finished, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("schemabank.adapters.export.SAFETY", 0)
        ended = schemabank("export", finished.lora.folder, "--out", "new")
        assert ended.code == 1
        assert "gives other logits in stock PEFT than" in ended.sentence
        assert not list(Path().iterdir())

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_saves_the_run_in_training_and_ends(
        self, number: int, code: int, finished: Finished, tmp_path: Path
    ) -> None:
        options = ["--set", "arm=lora", "--set", "train.num_train_epochs=100000"]
        out, said = tmp_path / "runs", tmp_path / "stderr"
        process = training(finished, out, said, options)
        while not list(out.glob(".*.partial/metrics.jsonl")):
            assert process.is_alive(), said.read_text()
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, number)
        began = time.monotonic()
        process.join(60)
        assert time.monotonic() - began < 10
        assert process.exitcode == code
        assert "saving where the runs stand" in said.read_text()
        assert "Traceback" not in said.read_text()
        (left,) = out.iterdir()
        assert left.name.endswith(".partial"), "and no lock"
        assert [path.name[:5] for path in (left / "checkpoints").iterdir()] == ["step-"]

    def test_a_killed_call_goes_on_to_the_bytes_of_one_that_was_not(
        self, finished: Finished, tmp_path: Path
    ) -> None:
        settings = {"train.num_train_epochs": 16, "engine.checkpoint_steps": 16}
        options = [x for name, value in settings.items() for x in ("--set", f"{name}={value}")]
        options += ["--set", "arm=lora"]
        whole, out, said = tmp_path / "whole", tmp_path / "runs", tmp_path / "stderr"
        (expected,) = run_experiment(
            load_experiment(finished.config, options[1::2]), whole, Notes()
        )
        process = training(finished, out, said, options)
        while not list(out.glob(".*.partial/checkpoints/step-*")):
            assert process.is_alive(), said.read_text()
            time.sleep(0.01)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        process = training(finished, out, said, options)
        process.join(60)
        assert process.exitcode == 0, said.read_text()
        assert re.search(r"resumed at step \d+ of 96: ", said.read_text())
        (folder,) = out.iterdir()
        ours, theirs = (
            {name: digest for name, (_, digest) in snapshot(place).items() if name != "cost.json"}
            for place in (folder, expected.folder)
        )
        assert ours == theirs


@pytest.mark.usefixtures("gsm8k")
class TestEvalAndExport:
    def test_eval_prints_the_table_and_the_place(
        self, schemabank: Program, finished: Finished
    ) -> None:
        ended = schemabank("eval", finished.schemabank.folder, "--out", "new", "--routing", "on")
        assert ended.code == 0
        assert ended.out.splitlines()[-1] == "predictions: new/predictions.jsonl"
        assert "schemabank, routing on" in ended.out
        assert len(Path("new/predictions.jsonl").read_text().splitlines()) == 6

    def test_options_of_eval_reach_the_evaluation(
        self, schemabank: Program, finished: Finished
    ) -> None:
        ended = schemabank(
            "eval",
            finished.base.folder,
            *("--task", "gsm_symbolic", "--few-shot", "2", "--limit", "1", "--out", "new"),
            *("--set", "task.gsm_symbolic.max_question_words=30"),
            *("--set", "task.gsm_symbolic.train_size=4", "--set", "task.gsm_symbolic.test_size=2"),
            *("--set", "task.gsm_symbolic.validation_size=0", "--set", "eval.split=test"),
        )
        assert ended.code == 0, ended.err
        result = json.loads(Path("new/result.json").read_text())
        assert (result["task"], result["few_shot"], result["routing"]) == ("gsm_symbolic", 2, "off")
        assert {k: v["num_items"] for k, v in result["groups"].items()} == {
            "seen": 1,
            "held_out": 1,
        }

    @pytest.mark.parametrize("merge", [False, True])
    def test_export_says_how_far_off_it_is(
        self, merge: bool, schemabank: Program, finished: Finished
    ) -> None:
        options = ["--merge"] if merge else []
        ended = schemabank("export", finished.lora.folder, "--out", "new", *options)
        assert ended.code == 0
        assert re.fullmatch(
            r"new: reloaded, largest relative difference of logits \d\.\de[-+]\d\d, of which "
            r"rounding explains up to \d\.\de[-+]\d\d\n",
            ended.out,
        )
        wanted = "model.safetensors" if merge else "adapter_model.safetensors"
        assert Path("new", wanted).is_file()


def test_routing_prints_what_routers_do_and_where_the_rest_is(
    schemabank: Program, finished: Finished, gsm8k: Path
) -> None:
    del gsm8k
    folder = finished.schemabank.folder
    ended = schemabank("routing", folder, "--split", "train", "--limit", 4, "--out", "routing")
    assert ended.code == 0
    for shown in ("8 schemas, 2 a token; 4 examples", "start", "1-router", "2-schemas", "end"):
        assert shown in ended.out
    assert ended.out.endswith("tables and figures: routing/routing.md\n")
    assert Path("routing", "usage.svg").is_file()
    again = schemabank("routing", folder, "--out", "routing")
    assert (again.code, again.out) == (2, "")
    assert "exists and is not overwritten" in again.err
    other = schemabank("routing", finished.lora.folder, "--out", "other")
    assert other.code == 2
    assert "holds no bank" in other.err


def test_a_suite_is_planned_run_and_gone_on_with(
    schemabank: Program, finished: Finished, gsm8k: Path
) -> None:
    del gsm8k
    settings = {key: value for key, value in SETTINGS.items() if key != "arm"}
    settings["model"] = {"name": str(finished.model), "dtype": "float32"}
    arms = {"plain": {"arm": "lora"}, "wide": {"arm": "lora", "train": {"batch_size": 8}}}
    suite = {"defaults": settings, "arms": arms, "seeds": [1, 2]}
    Path("suite.yaml").write_text(yaml.safe_dump(suite))
    planned = schemabank("suite", "suite.yaml", "--dry-run", "--out", "runs")
    assert planned.code == 0
    assert "4 runs in 'runs'" in planned.out
    assert not Path("runs").exists()
    ended = schemabank("suite", "suite.yaml", "--out", "runs")
    assert ended.code == 0
    assert "plain" in ended.out
    assert re.search(r"wide +2 +\d", ended.out), (
        "the mean over two seeds, whose interval may be empty"
    )
    again = schemabank("suite", "suite.yaml", "--out", "runs", "--json")
    rows = json.loads(again.out)
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("plain", 1),
        ("plain", 2),
        ("wide", 1),
        ("wide", 2),
    ]
    assert all(row["failure"] is None and row["result"]["metric"] == "numeric" for row in rows)
    assert again.err.count("reused: ") == 4


def test_the_program_is_quiet_about_libraries_as_long_as_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (HUB, DATASETS, TQDM):
        monkeypatch.delenv(name, raising=False)
    seen: dict[str, str] = {}
    main(lambda: seen.update(os.environ))
    assert [seen.get(name) for name in (HUB, DATASETS, TQDM)] == [None, "1", "1"]
    assert not {HUB, DATASETS, TQDM} & set(os.environ)


def test_score_prints_one_object_a_row(schemabank: Program) -> None:
    rows = [
        {"completion": "so it is\n#### 1,234", "gold": "1234"},
        {"id": "b", "completion": "first 5, then 7.", "gold": "#### 7"},
        {"completion": "The answer is: 3\nQuestion: 4", "gold": 3.0},
        {"completion": "−5 apples", "gold": "-5"},
        {"completion": "none — é", "gold": "1"},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = schemabank("score", "gsm8k", "rows.jsonl")
    assert (ended.code, ended.err) == (0, "")
    assert [json.loads(line) for line in ended.out.splitlines()] == [
        {"strict": "1234", "flexible": "1234", "correct": True},
        {"id": "b", "strict": None, "flexible": "7", "correct": True},
        {"strict": "3", "flexible": "3", "correct": True},
        {"strict": None, "flexible": "-5", "correct": True},
        {"strict": None, "flexible": None, "correct": False},
    ]


class TestConfigSchema:
    @pytest.fixture
    def schema(self, schemabank: Program) -> dict[str, Any]:
        ended = schemabank("config-schema")
        assert (ended.code, ended.err) == (0, "")
        printed: dict[str, Any] = json.loads(ended.out)
        return printed

    def test_describes_every_setting(self, schema: dict[str, Any]) -> None:
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        for definition in (schema, *schema["$defs"].values()):
            for name, setting in definition["properties"].items():
                assert "description" in setting or "$ref" in setting, name
            assert definition["description"]

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda p: "/".join(p.parts[-2:]))
    def test_knows_every_key_of_our_configurations(
        self, path: Path, schema: dict[str, Any]
    ) -> None:
        assert _unknown_keys(yaml.safe_load(path.read_text()), schema, schema["$defs"]) == []
        assert load_experiment(path).runs()

    def test_describes_suites_too(self, schemabank: Program) -> None:
        schema = json.loads(schemabank("config-schema", "--suite").out)
        assert set(schema["properties"]) == {
            "arms",
            "contrast",
            "defaults",
            "exclude",
            "extends",
            "grid",
            "seeds",
            "tune",
        }
        assert all("description" in setting for setting in schema["properties"].values())

    def test_the_check_itself_finds_unknown_keys(self, schema: dict[str, Any]) -> None:
        tree = {"arm": "lora", "x": 1, "train": {"y": 1}, "curriculum": [{"name": "a", "z": 2}]}
        assert _unknown_keys(tree, schema, schema["$defs"]) == ["x", "y", "z"]


def _unknown_keys(value: object, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> list[str]:
    """Keys of a configuration that its JSON Schema does not name."""
    if "$ref" in schema:
        return _unknown_keys(value, defs[schema["$ref"].rpartition("/")[2]], defs)
    if isinstance(value, Mapping):
        known = schema.get("properties", {})
        unknown = [key for key in value if key not in known]
        inner = [_unknown_keys(value[key], known[key], defs) for key in value if key in known]
        return unknown + [key for keys in inner for key in keys]
    if isinstance(value, list) and "items" in schema:
        return [key for item in value for key in _unknown_keys(item, schema["items"], defs)]
    return []


class TestHelp:
    COMMANDS = ("train", "eval", "power", "export", "score", "config-schema")

    def test_works_for_every_command_and_waits_for_no_library(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", HELP_SCRIPT, *self.COMMANDS],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"},
        )
        assert done.returncode == 0, done.stderr
        for command in self.COMMANDS:
            assert f"schemabank {command} " in done.stdout

    def test_colours_are_for_those_who_want_them(self) -> None:
        env = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
        colours = []
        for more in ({"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):
            command = [*PROGRAM, "train", "--help"]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=env | more
            )
            colours.append(bool(COLOR.search(done.stdout)))
        assert colours == [True, False]

    def test_version(self, schemabank: Program) -> None:
        ended = schemabank("--version")
        assert (ended.code, ended.out) == (0, f"schemabank {__version__}\n")

    def test_nothing_asked_shows_the_help(self, schemabank: Program) -> None:
        ended = schemabank()
        assert "train" in ended.out + ended.err
        assert ended.code in {0, 2}


@pytest.mark.parametrize("no_color", [False, True])
def test_progress_bars_honour_no_color(
    no_color: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    with reporter() as progress:
        progress.start("train", 2)
        progress.advance(1, "loss 1.0")
        progress.finish()
    captured = capsys.readouterr()
    assert "train" in captured.err
    assert captured.out == ""
    assert bool(COLOR.search(captured.err)) == (not no_color)


@pytest.mark.usefixtures("gsm8k")
def test_no_network_is_needed_for_local_models_and_data(
    schemabank: Program, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    config = write_config(tmp_path / "c.yaml", finished.model, arm="schemabank")
    monkeypatch.setenv("SCHEMABANK_DATA", str(write_gsm8k(tmp_path / "data")))
    assert schemabank("train", config, "--set", "train.max_steps=3").code == 0


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't"])
def test_memory_that_runs_out_is_said_in_words(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted() -> None:
        if "CUDA" in words:
            raise torch.OutOfMemoryError(words)
        raise RuntimeError(f"{words} allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(SystemExit) as ended:
        main(exhausted)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"schemabank: memory ran out ({words}")
