"""Figures in the sentences of pages are those of their records; test_docs.py has the tables."""

import json
import re
from math import ceil
from typing import Any

import pytest

from docblocks import blocks
from schemabank.config.train import TrainSettings
from tools import BENCHMARKS, load_tool

ROOT = BENCHMARKS.parent
RESULTS = ROOT / "results"
PLACES = ("answer", "prompt", "target")
STEPS = "engine, stages 2-3"
Row = dict[str, Any]


def page(name: str) -> str:
    """A page of docs as one line."""
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def record(name: str) -> Any:  # noqa: ANN401 -- each has a shape of its own
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def benchmark(name: str, *, model: str = "qwen2-0.5b-shape") -> dict[tuple[str, int], Row]:
    """A record's rows of a model, by case and slots."""
    rows = record(f"benchmarks/{name}.json")
    return {(row["case"], row["slots"]): row for row in rows if row["model"] == model}


def matrix_flop_a_position() -> int:
    """Of the frozen blocks: a product and its backward pass to the input, two each a weight."""
    shape = load_tool(BENCHMARKS / "bench.py").QWEN2_SHAPE
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    keys = hidden * shape["num_key_value_heads"] // heads
    a_block = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * shape["intermediate_size"]
    return int(4 * shape["num_hidden_layers"] * a_block)


def test_where_a_cohort_stops_helping() -> None:
    rows, said = benchmark("nvidia-h200"), page("performance.md")
    many, fewer = rows[STEPS, 40], rows[STEPS, 20]
    faster = many["real_tokens_per_s"] / fewer["real_tokens_per_s"] - 1
    memory = many["peak_memory_gib"] / fewer["peak_memory_gib"]
    assert f"the rate grows by {faster:.0%}".replace("%", " %") in said
    assert f"for {memory:.1f} times the memory." in said
    flop = matrix_flop_a_position()
    positions = many["real_tokens_per_s"] / (1 - many["padding_ratio"])
    share = positions * flop / (rows["matrix product", 0]["tflops"] * 1e12)
    assert f"{flop / 1e9:.2f} GFLOP a position, would take {100 * share:.0f} % of" in said


def test_what_worked_solutions_change() -> None:
    said = page("performance.md")
    small = benchmark("nvidia-h200", model="smollm2-135m-instruct")
    one, short = small[STEPS, 1], benchmark("nvidia-h200")[STEPS, 1]
    tokens = [row["real_tokens_per_s"] * row["ms_per_step"] for row in (one, short)]
    assert f"have {tokens[0] / tokens[1]:.1f} times as many tokens" in said
    faster = small[STEPS, 20]["real_tokens_per_s"] / one["real_tokens_per_s"]
    assert f"20 slots of the smaller model have {faster:.1f} times the rate of one." in said


def without(rows: dict[tuple[str, int], Row], technique: str) -> list[float]:
    """How much longer a step takes without a technique, in stages 2-3 and in stage 1."""
    return [
        rows[f"{case}, without {technique}", 20]["ms_per_step"] / rows[case, 20]["ms_per_step"]
        for case in (STEPS, "engine, stage 1")
    ]


def test_what_techniques_bring() -> None:
    said, rows = page("performance.md"), benchmark("nvidia-h200-techniques")
    later, first = without(rows, "capture")
    assert f"Capture brings a factor of {later:.1f} in stages 2-3 ({first:.1f} in stage 1)" in said
    later, first = without(rows, "compiling")
    assert f"and compiling {later:.1f} ({first:.1f})." in said
    later, first = (100 * (1 - 1 / factor) for factor in without(rows, "loss kernel"))
    assert f"The loss kernel saves {later:.0f} % of a step ({first:.0f} % in stage 1)" in said
    later, first = without(rows, "cached trunk")
    assert f"makes stage 1 {first:.1f} times as fast and changes nothing else." in said
    assert later == pytest.approx(1, abs=0.01)
    rows = benchmark("nvidia-h200-lora-kernel")
    later, _ = without(rows, "LoRA kernel")
    plain, own = (
        rows[f"{STEPS}{how}", 20]["peak_memory_gib"] for how in (", without LoRA kernel", "")
    )
    saved = f"saves {100 * (1 - 1 / later):.0f} % of a step and {100 * (1 - own / plain):.0f} % of"
    assert saved in said


def test_how_much_is_padding() -> None:
    names = [path.stem for path in (RESULTS / "benchmarks").glob("*.json")]
    shares = [
        100 * row["padding_ratio"]
        for name in names
        for row in record(f"benchmarks/{name}.json")
        if row["case"].startswith("engine, stage")
    ]
    buckets = TrainSettings().max_buckets
    said = (
        f"for {buckets} widths, which leave {min(shares):.0f} to {max(shares):.0f} % of positions"
    )
    assert said in page("performance.md")


def layers(found: Row, state: str, name: str) -> list[float]:
    return [row[name] for row in found["layers"] if row["state"] == state]


def known(found: Row, state: str, place: str) -> list[Row]:
    """What routers know of the rule, each layer's."""
    asked = {"field": "rule", "state": state, "place": place}
    return [row for row in found["information"] if asked.items() <= row.items()]


def test_what_routers_with_tags_know() -> None:
    said, found = page("routing.md"), record("routing/rule-tags.json")
    assert layers(found, "1-router", "tag_agreement") == pytest.approx([2 / 3] * 2, abs=0.05)
    by_chance = layers(found, "1-router", "tag_agreement_by_chance")
    assert by_chance == pytest.approx([1 / 6] * 2, abs=0.05)
    assert "about two thirds of all choices are the rule's own two schemas; by chance" in said
    later = [
        100 * share for at in ("2-schemas", "end") for share in layers(found, at, "tag_agreement")
    ]
    assert f"the share falls to between {min(later):.0f} and {max(later):.0f} %." in said
    first, end = ({p: known(found, at, p) for p in PLACES} for at in ("1-router", "end"))
    one, other = (f"{row['value']:.1f}" for row in first["answer"])
    at_most = first["answer"][0]["field_entropy"]
    assert f"it is {one} and {other} of {at_most:.1f} nats after stage 1." in said
    assert [f"{row['value']:.1f}" for row in end["target"]] == ["0.6"] * 2
    assert "0.6 nats in either layer" in said
    assert [f"{row['value']:.1f}" for row in end["prompt"]] == ["0.2"] * 2
    assert "The prompt has 0.2 nats" in said
    assert all(row["p_value"] > 0.05 for row in end["answer"])
    assert all(row["p_value"] < 0.01 for row in [*end["prompt"], *end["target"]])


def test_what_routers_without_tags_know() -> None:
    said, found = page("routing.md"), record("routing/no-tags.json")
    used, later = (layers(found, at, "effective_schemas") for at in ("start", "1-router"))
    assert f"begin with {used[0]:.1f} and {used[1]:.1f} schemas in use, as with tags" in said
    assert used == layers(record("routing/rule-tags.json"), "start", "effective_schemas")
    assert f"have {later[0]:.1f} and {later[1]:.1f} after stage 1" in said
    dead = [len(each) for each in layers(found, "1-router", "dead")]  # type: ignore[arg-type]
    assert f"of the {found['num_schemas']} schemas {dead[0]} and {dead[1]} are dead." in said
    trained = [row["entropy"] for row in found["layers"] if row["state"] != "start"]
    assert f"entropy of at most {max(trained):.2f} nats." in said
    answer, prompt, target = (known(found, "end", place) for place in PLACES)
    assert all(row["p_value"] > 0.05 for row in answer)
    assert all(row["p_value"] < 0.01 for row in [*prompt, *target])
    values = [f"{row['value']:.3f}" for row in [*prompt, *target]]
    assert f"they have {values[0]} and {values[1]} nats, and in the target {values[2]} and" in said
    with_tags = record("routing/rule-tags.json")
    for own, place in ((prompt, "prompt"), (target, "target")):
        tagged = known(with_tags, "end", place)
        assert all(a["value"] <= b["value"] / 10 for a, b in zip(own, tagged, strict=True)), place
    assert f"{values[2]} and {values[3]}: more than after shuffling, but at most a tenth" in said


def test_accuracies_beside_the_table_of_routing() -> None:
    said = page("routing.md")
    runs = {
        (tags, how): record(f"routing/{tags}-{how}.json")["groups"]
        for tags in ("rule-tags", "no-tags")
        for how in ("on", "off", "dense")
    }
    shares = []
    for tags, words in (("rule-tags", "with tags solves"), ("no-tags", "without")):
        assert runs[tags, "on"]["seen"]["correct"] == 1
        own = runs[tags, "on"]["held_out"]
        low, high = (f"{100 * end:.1f}" for end in own["correct_interval_95"])
        share = f"{100 * own['correct']:.1f} %"
        interval = (
            f"(95 % interval {low} to {high})" if tags == "rule-tags" else f"({low} to {high})"
        )
        assert f"{words} {share} {interval}" in said
        shares += [
            100 * group["correct"] for how in ("off", "dense") for group in runs[tags, how].values()
        ]
    assert f"they have {min(shares):.1f} to {max(shares):.1f} %, while" in said
    seen, held_out = (
        100 * runs["no-tags", "on"][group]["best_constant_correct"]
        for group in ("seen", "held_out")
    )
    assert f"the best constant answer has {seen:.1f} % and {held_out:.1f} %)" in said
    assert f"the best constant answer has {seen:.1f} and {held_out:.1f} %." in said


def test_what_is_said_of_rules_of_choice_is_what_the_record_says() -> None:
    tool = load_tool(BENCHMARKS / "rate_rule.py")
    lines = record("rate_rule.json")["lines"]
    worlds = list(dict.fromkeys(line["worlds"] for line in lines))
    (row,) = tool.ahead_rows(lines, worlds)
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    most = max(float(cell.split()[0]) for cell in cells)
    recorded = cells[worlds.index("recorded")].removeprefix("+")
    said = f"ahead by at most {most:.2f} points, and by {recorded} points on the recorded curves."
    assert said in page("suites.md")


def test_what_is_said_of_false_verdicts_is_what_the_record_says() -> None:
    said, lines = page("report.md"), record("verdicts.json")["lines"]
    own = [
        line
        for line in lines
        if line["method"] == "crossed_difference"
        and line["kind"] == "alike"
        and line["num_seeds"] >= 4
    ]
    assert f"so {100 * max(line['rate'] for line in own):.1f} % may be chance" in said
    items = {line["num_items"] for line in lines}
    assert f"It was simulated with {min(items)} to {max(items):,} items" in said


def test_what_is_said_of_the_records_of_rates_is_in_them() -> None:
    said = " ".join((RESULTS / "learning_rates" / "README.md").read_text(encoding="utf-8").split())
    lines = (RESULTS / "learning_rates" / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    (constant,) = {json.loads(line)["best_constant_correct"] for line in lines}
    assert (
        f"every accuracy is at the level of the best constant answer ({constant:.0%}),".replace(
            "%", " %"
        )
        in said
    )
    (own,) = (
        row
        for row in record("rate_rule.json")["records"]
        if (row["record"], row["arm"]) == ("quickstart", "lora")
    )
    before, now = own["before"], own["now"]
    assert (
        f"it takes {1000 * before['learning_rate']:g}e-3 for plain LoRA ({before['score']:.3f}) "
        f"where {1000 * now['learning_rate']:g}e-3 scores {now['score']:.3f}."
    ) in said


def test_how_many_lines_a_script_and_a_method_take() -> None:
    (script,) = (b.body for b in blocks("docs/trainer.md") if b.mark == "example: trl")
    new = [
        line for line in script.splitlines() if re.search(r"schemabank|Method.*Mixin|sb\.", line)
    ]
    new.append('    """SFTTrainer under a method."""')  # a class has a body
    assert set(new) <= set(script.splitlines())
    assert len(new) == 5
    assert "Five lines are new: two imports, two for a class, and `method=`." in page("trainer.md")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "by five more lines in a script that uses PEFT" in readme
    marks = ("example: descent/method.py", "example: descent/__init__.py", "example: entry point")
    parts = [b.body for b in blocks("docs/methods.md") if b.mark in marks]
    assert len(parts) == len(marks)
    lines = sum(len(part.splitlines()) for part in parts)
    assert f"adds a method in {lines} lines;" in readme


def test_the_memory_that_is_asked_for_holds_every_task_on_a_cpu() -> None:
    most = max(row["peak_memory_gib"] for row in record("tasks/cpu-2-threads.json"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"two CPU cores, {ceil(most)} GiB of memory" in readme
