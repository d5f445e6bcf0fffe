"""README and docs are held to what the program does."""

import json
import re
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
import transformers
from typer.main import get_command
from typer.testing import CliRunner

from ourconfigs import CONFIGS
from schemabank.cli import app
from schemabank.common.tables import markdown_table
from schemabank.config.file import load_experiment
from schemabank.report.routing.report import tables
from schemabank.runs.tables import results_tables
from tiny import tiny_model, tiny_tokenizer
from tinyruns import write_model
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def blocks_after(mark: str, page: str) -> list[str]:
    """The blocks of Python that stand behind a mark."""
    parts = page.split(f"<!-- {mark} -->\n```python\n")[1:]
    return [part.partition("```")[0] for part in parts]


@pytest.fixture
def tiny_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run examples in, whose models are tiny ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda _: tiny_model("qwen2")
    )
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _: tiny_tokenizer())
    return tmp_path


def test_the_python_examples_run_as_printed(
    tiny_hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,), (many,) = blocks_after("example", README), blocks_after("cohort example", README)
    assert all(0 < len(code.strip().splitlines()) < 20 for code in (one, many))
    names: dict[str, object] = {}
    exec(one, names)  # noqa: S102 -- our own README
    assert (tiny_hub / "my-adapter" / "adapter_model.safetensors").is_file()
    exec(many, names)  # noqa: S102 -- our own README
    folders = sorted(path.name for path in (tiny_hub / "adapters").iterdir())
    assert folders == [f"seed {seed}" for seed in range(4)]
    assert len(re.findall(r"^seed \d [\d.]+$", capsys.readouterr().out, re.MULTILINE)) == 4


def test_the_page_on_python_runs_as_printed(
    tiny_hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = blocks_after("runs as printed", PYTHON)
    assert len(blocks) == PYTHON.count("```python") == 6
    names: dict[str, object] = {}
    for code in blocks:
        exec(code, names)  # noqa: S102 -- our own page
    folders = {path.name for path in tiny_hub.iterdir()}
    assert folders == {"best-adapter", "first-adapter", "my-adapter", "my-second-adapter"}
    assert capsys.readouterr().out.count("nats per token") == 4


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory'")  # where there is no GPU
def test_the_trainers_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
    code = page.partition("<!-- example: transformers -->")[2].partition("```python\n")[2]
    write_model(tmp_path / "Qwen" / "Qwen2-0.5B", "qwen2")
    monkeypatch.chdir(tmp_path)
    exec(code.partition("```")[0], {})  # noqa: S102 -- our own page
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


def test_the_readmes_table_is_that_of_its_record() -> None:
    order = ["base", "lora", "schemabank"]
    records = [next((ROOT / "results" / "quickstart").glob(f"{arm}-*.json")) for arm in order]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    printed = README.partition("results/quickstart -->\n")[2]
    for table in results_tables(results):
        shown, _, printed = printed.partition("\n\n")
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in shown.split("\n")
        ]
        rows = zip(*(column.cells for column in table.columns), strict=True)
        headers = [str(column.header) for column in table.columns]
        assert [lines[0], *lines[2:]] == [headers, *([str(cell) for cell in row] for row in rows)]


def test_every_path_in_the_readme_exists() -> None:
    named = re.findall(r"(?:configs|docs)/[\w./{}-]+", README)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name.rstrip("/.")).exists(), name


def test_every_command_in_the_readme_exists_and_none_is_missing() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    listed = set(re.findall(r"^\| `schemabank ([\w-]+)", README, flags=re.MULTILINE))
    assert listed == commands
    for make in re.findall(r"^\$ make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{make}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_is_valid(path: Path) -> None:
    assert load_experiment(path).runs()


def test_the_papers_configurations_are_its_forty_runs() -> None:
    runs = [run for p in CONFIGS if p.parent.name == "paper" for run in load_experiment(p).runs()]
    planned = {(run.arm, run.seed, run.train.num_train_epochs) for run in runs}
    assert planned == {
        (arm, seed, epochs)
        for arm in ("lora", "schemabank")
        for seed in (42, 123, 456, 789)
        for epochs in (2, 4, 6, 8, 10)
    }
    assert {run.model.name for run in runs} == {"Qwen/Qwen2-0.5B"}
    assert {run.preset for run in runs} == {"paper"}


def test_the_settings_page_is_up_to_date() -> None:
    module = load_tool(ROOT / "docs" / "build_settings.py")
    assert module.TARGET.read_text(encoding="utf-8") == module.page()


def test_published_learning_rates_follow_from_their_records() -> None:
    tool = load_tool(BENCHMARKS / "choose_learning_rates.py")
    folder = ROOT / "results" / "learning_rates"
    records = sorted(folder.glob("*.jsonl"))
    assert len(records) == 4
    printed = "\n".join(tool.table(path) for path in records)
    assert (folder / "README.md").read_text(encoding="utf-8").endswith(printed)


@pytest.mark.parametrize("name", ["loss_weights", "epoch_orders"])
def test_the_methods_tables_are_those_of_their_records(name: str) -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    record = f"results/{name}.json"
    shown = shown_by(f"{name}.py", record).partition("\n\n")[0].rstrip("\n")
    assert page.partition(f"<!-- {name}.py: {record} -->\n")[2].startswith(f"{shown}\n\n")


def test_what_is_said_of_orders_is_what_the_records_say() -> None:
    page = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    weights = json.loads((ROOT / "results" / "loss_weights.json").read_text(encoding="utf-8"))
    assert f"(at most {weights['correlation']:.2f} on GSM8K" in page
    rows = json.loads((ROOT / "results" / "epoch_orders.json").read_text(encoding="utf-8"))
    steps = {row["orders"]: row["others"] for row in rows if row["slots"] == 22}
    more = [f"{steps[orders] / steps[1] - 1:.0%}".replace("%", " %") for orders in (2, 4)]
    assert f"two orders take {more[0]} more steps after stage 1 than one order" in page
    assert f"four take {more[1]} more." in page
    planned = {row["orders"]: row for row in rows if row["is_planned"]}
    longer = {n: planned[n]["cost"] / planned[1]["cost"] - 1 for n in planned}
    assert f"with two orders {planned[2]['slots']}, which compute as many positions" in page
    assert planned[2]["positions"] == pytest.approx(planned[1]["positions"], rel=0.01)
    assert f"should take {longer[2] * 100:.0f} % longer" in page
    assert f"with four orders {planned[4]['slots']}, which should" in page
    assert f"should take {longer[4] * 100:.0f} % longer. So the preset" in page


def test_what_a_prompts_blank_costs_is_what_the_records_say() -> None:
    page = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    costs = []
    for shots in ("zero-shot", "two-shot"):
        record = ROOT / "results" / "prompt_forms" / f"{shots}.json"
        forms = json.loads(record.read_text(encoding="utf-8"))["prompt_forms"]
        costs.append(forms["whole"]["all"]["gold_nats"] - forms["trimmed"]["all"]["gold_nats"])
    assert f"costs {costs[0]:.1f} nats a worked solution" in page
    assert f"after two shots {costs[1]:.1f} (" in page


def test_speeds_beside_the_tables_are_those_of_the_record() -> None:
    rows = json.loads((ROOT / "results" / "benchmarks" / "nvidia-h200.json").read_text())
    rates = {(r["case"], r["slots"]): r["real_tokens_per_s"] for r in rows[:15]}
    steps = "engine, stages 2-3"
    captured = rates["PEFT, tuned, compiled and captured", 1]
    (capturing,) = (r for r in rows if r["case"] == "PEFT, tuned, compiled and captured")
    eager = rates["PEFT, tuned", 1]
    many, one = rates[steps, 40], rates[steps, 1]
    readme, page = (" ".join(text.split()) for text in (README, PERFORMANCE))
    assert f"train {many / captured:.1f} times as fast as one after another" in readme
    assert f"{many / eager:.0f} times as fast as in the same loop uncompiled" in readme
    assert f"a single run is {one / captured:.1f} and {one / eager:.0f} times as fast" in readme
    compared = " ".join((ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").split())
    assert f"small: {one / captured:.1f} times a PEFT loop that is compiled and" in compared
    assert f"It is {many / captured:.1f} times for 40 runs at once" in compared
    assert f"40 slots are {many / captured:.1f} times as fast" in page
    assert f"on this machine the factors are {many / eager:.0f} and {one / eager:.0f}." in page
    assert f"{capturing['ms_per_step']:.1f} ms, after {capturing['start_s']:.0f} s of" in page
    growth = [f"{rates[steps, slots] / one:.1f}" for slots in (4, 8, 20, 40)]
    assert f"4, 8, 20 and 40 slots have {', '.join(growth[:3])} and {growth[3]} times" in page


def test_what_is_said_of_the_check_of_exports_is_what_the_record_says() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    record = "results/peft_check/nvidia-h100.json"
    shown = shown_by("peft_check.py", record).partition("\n\n")[0]
    assert page.partition(f"<!-- peft_check.py: {record} -->\n")[2].startswith(f"{shown}\n\n")
    rows = json.loads((ROOT / record).read_text(encoding="utf-8"))
    known = [row for row in rows if row["difference"] is not None]
    good = max(row["difference"] for row in known if row["adapter"] == "good")
    bad = min(row["difference"] for row in known if row["adapter"] != "good")
    said = f"Good ones differ by at most {good:.1e}, damaged ones by at least {bad:.1e}."
    assert said in " ".join(page.split())


def test_the_table_of_false_verdicts_is_that_of_its_record() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    record = "results/verdicts.json"
    shown = shown_by("verdicts.py", record).partition("\n\n")[0]
    assert page.partition(f"<!-- verdicts.py: {record} -->\n")[2].startswith(f"{shown}\n")


def test_the_table_of_margins_is_that_of_its_record() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    record = "results/margins.json"
    shown = shown_by("margins.py", record).partition("\n\n")[0]
    assert page.partition(f"<!-- margins.py: {record} -->\n")[2].startswith(f"{shown}\n")


def test_the_table_of_clusters_is_that_of_its_record() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    record = "results/clusters.json"
    shown = shown_by("clusters.py", record).partition("\n\n")[0]
    assert page.partition(f"<!-- clusters.py: {record} -->\n")[2].startswith(f"{shown}\n")


def test_tables_of_rate_rules_are_those_of_their_record() -> None:
    record = "results/rate_rule.json"
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    shown = shown_by("rate_rule.py", record)
    assert page.partition(f"<!-- rate_rule.py: {record} -->\n")[2].startswith(shown)
    readme = (ROOT / "results" / "learning_rates" / "README.md").read_text(encoding="utf-8")
    tool = load_tool(BENCHMARKS / "rate_rule.py")
    rows = json.loads((ROOT / record).read_text(encoding="utf-8"))["records"]
    printed = tool.records_table(rows)
    assert readme.partition(f"<!-- rules on records: {record} -->\n")[2].startswith(printed)


@pytest.mark.parametrize(
    ("config", "arm", "record"),
    [
        ("quickstart", "lora", "quickstart"),
        ("quickstart", "schemabank", "quickstart-handover"),
        ("gsm8k/sound", "lora", "gsm8k"),
        ("gsm8k/sound", "schemabank", "gsm8k"),
        ("gsm8k/handover", "schemabank", "gsm8k-handover"),
    ],
)
def test_configurations_use_the_chosen_learning_rate(config: str, arm: str, record: str) -> None:
    tool = load_tool(BENCHMARKS / "choose_learning_rates.py")
    tried = tool.rates(ROOT / "results" / "learning_rates" / f"{record}.jsonl")
    runs = load_experiment(ROOT / "configs" / f"{config}.yaml").runs()
    stages = next(run for run in runs if run.arm == arm).stages()
    highest = max(stage.learning_rate for stage in stages if "lora" in stage.train)
    assert highest == tool.choose(tried[arm]).learning_rate


PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
RECORDS = {
    record: script
    for script in ("engine.py", "profile_step.py", "liger.py")
    for record in re.findall(rf"<!-- {script}: (\S+) -->", PERFORMANCE)
}


def shown_by(script: str, record: str) -> str:
    """What a benchmark prints of a record; here, since a process of its own would load torch."""
    tool = load_tool(BENCHMARKS / script)
    arguments = [script, "--show", "--out", str(ROOT / record)]
    with patch.object(sys, "argv", arguments), redirect_stdout(StringIO()) as shown:
        ended = tool.main()
    assert not ended
    return shown.getvalue()


@pytest.mark.parametrize("record", RECORDS)
def test_performance_tables_are_those_of_their_records(record: str) -> None:
    shown = shown_by(RECORDS[record], record)
    assert PERFORMANCE.partition(f"{record} -->\n")[2].startswith(shown)


def test_the_tasks_table_is_that_of_its_record() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    record = "results/tasks/cpu-2-threads.json"
    shown = shown_by("tasks.py", record)
    assert page.partition(f"<!-- tasks.py: {record} -->\n")[2].startswith(shown)


ROUTING = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
ROUTING_RECORDS = re.findall(r"<!-- routing: (\S+) -->", ROUTING)


@pytest.mark.parametrize("record", ROUTING_RECORDS)
def test_routing_tables_are_those_of_their_records(record: str) -> None:
    report = json.loads((ROOT / record).read_text(encoding="utf-8"))
    states, information = ("\n".join(markdown_table(*t[1:])) for t in tables(report)[:2])
    assert ROUTING.partition(f"{record} -->\n")[2].startswith(f"{states}\n\n{information}\n")


def test_routing_accuracies_are_those_of_their_records() -> None:
    shown = ROUTING.partition("<!-- routing accuracy: results/routing -->\n")[2]
    rows = [line.strip("| ").split(" | ") for line in shown.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) == 6
    for tags, routing, *correct in rows:
        name = {"the rule": "rule-tags", "none": "no-tags"}[tags]
        record = ROOT / "results" / "routing" / f"{name}-{routing}.json"
        groups = json.loads(record.read_text(encoding="utf-8"))["groups"]
        assert correct == [f"{groups[g]['correct']:.1%}" for g in ("seen", "held_out")]


def test_the_reports_table_is_that_of_its_record() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    record = "results/report_scale.json"
    shown = shown_by("report_scale.py", record)
    assert page.partition(f"<!-- report_scale.py: {record} -->\n")[2].startswith(shown)


def test_the_example_of_a_plan_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    record = "<!-- pilot: benchmarks/report_scale.py -->\n```console\n"
    command, *shown = page.partition(record)[2].partition("```")[0].splitlines()
    tool = load_tool(BENCHMARKS / "report_scale.py")
    tool.write_runs(tmp_path / "pilot", num_seeds=4, num_items=200, full_seeds=0)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, shlex.split(command.removeprefix("$ schemabank ")))
    assert ended.exit_code == 0
    printed = [line.rstrip() for line in ended.stdout.splitlines() if line.strip()]
    assert shown == printed


def test_the_plan_from_stated_spreads_is_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- spreads -->\n```console\n")[2].partition("```")[0]
    command, *lines = shown.splitlines()
    ended = CliRunner().invoke(app, shlex.split(command.removeprefix("$ schemabank ")))
    assert ended.exit_code == 0
    assert lines == [line.rstrip() for line in ended.stdout.splitlines() if line.strip()]


def test_the_whole_suites_figures_are_those_of_the_record() -> None:
    rows = json.loads((ROOT / "results" / "benchmarks" / "nvidia-h200.json").read_text())
    (row,) = (row for row in rows if row["case"] == "paper suite")
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    total, training, evaluation = (row[f"{name}_s"] for name in ("total", "training", "evaluation"))
    assert (
        f"takes {total:.1f} s, {training:.1f} s of training in {row['slots']} slots and "
        f"{evaluation:.1f} s of evaluation, with {row['peak_memory_gib']:.1f} GiB"
    ) in " ".join(page.split())


def test_the_expected_time_of_the_documents_experiment_is_that_of_the_record() -> None:
    rows = json.loads((ROOT / "results" / "benchmarks" / "nvidia-h200.json").read_text())
    (row,) = (row for row in rows if row["case"] == "paper suite")
    orders = json.loads((ROOT / "results" / "epoch_orders.json").read_text(encoding="utf-8"))
    planned = {row["orders"]: row["cost"] for row in orders if row["is_planned"]}
    longer = f"{(planned[2] / planned[1] - 1) * 100:.0f}"
    said = load_tool(BENCHMARKS / "original.py").expected_time()
    minutes, total = f"{row['total_s'] / 60:.0f} minutes", f"{row['total_s']:.0f} s"
    assert f"about {minutes} on one {row['device']}, where 40 runs" in said
    assert (
        f"took {total} ({row['training_s']:.0f} s of training, {row['evaluation_s']:.0f} s" in said
    )
    assert f"training should take {longer}% longer" in said
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    readme, page = (" ".join(text.split()) for text in (README, method))
    assert f"One {row['device']} took {minutes} for 40 such runs" in readme
    assert f"{total} in all on one {row['device']}, for 40 runs of this shape" in page
    assert f"training should take {longer} % longer." in page


def test_every_benchmark_record_is_shown() -> None:
    folders = (ROOT / "results" / name for name in ("benchmarks", "profiles"))
    records = [path for folder in folders for path in folder.glob("*.json")]
    assert {str(path.relative_to(ROOT)) for path in records} == set(RECORDS)
