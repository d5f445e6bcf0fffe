"""The sample browser: every sample is on the page, the script only hides what is not asked for.

A sample stands in a ``<details>`` with an anchor of its own, ``#sample-ID``; answers of the arms
stand side by side, a line for each setting and seed.
"""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from schemabank.common.lines import one_line
from schemabank.report.comparing.comparison import at_settings
from schemabank.report.contents import Report
from schemabank.report.page.markup import clipped, html, isolated, scrolling, visible
from schemabank.report.sections.samples import Answer, Sample, Shown

MOST_BYTES = 2_000_000  # of all samples
MOST_SAMPLES = 1_000
LONGEST_TEXT = 4_000  # characters of a prompt or a completion
LONGEST_TEASER = 110
MOST_GOLDS = 10
# What stands before a colon is the sample's mark.
ALWAYS = {"mixed": "mixed: over seeds or settings", "unpaired": "no common seed"}
RIGHT_OR_WRONG = {
    "gained": "gained: treatment right, control wrong",
    "lost": "lost: treatment wrong, control right",
    "both": "both right",
    "neither": "neither right",
    **ALWAYS,
}
OF_SCORES = {
    "gained": "treatment higher",
    "lost": "control higher",
    "both": "equal",
    "neither": "both 0",
    **ALWAYS,
}
FLIPS = {True: RIGHT_OR_WRONG, False: OF_SCORES}


def browser(report: Report) -> str:
    """Return the form and the samples as HTML; their texts are anybody's."""
    of, samples = report.topics.samples_of, report.samples
    if of is None:
        return ""
    if not samples:
        without = of.without_predictions
        return f"<p>No samples: {_without_predictions(without)}.</p>" if without else ""
    has = _distinct(answer.arm for sample in samples for answer in sample.answers)
    own = report.comparison
    arms = _distinct((*(arm for arm in (own.treatment, own.control) if arm in has), *has))
    binary = of.binary
    written = [
        _sample(sample, anchor, arms, binary=binary)
        for sample, anchor in zip(samples, _anchors(samples), strict=True)
    ]
    places = cut([len(text.encode()) for text in written])
    shown = [samples[at] for at in places]
    what = _scope(of, own.setting_name, len(shown), len(samples))
    return (
        f"<h3>Samples</h3><p>{isolated(what)} Each opens on its own; the arms' answers are side by "
        f'side.</p>{_filters(shown, arms, binary=binary)}<div id="samples">'
        f"{''.join(written[at] for at in places)}</div>"
    )


def cut(sizes: Sequence[int]) -> list[int]:
    """Return the places of an even selection that is small enough for a page.

    Args:
        sizes: of all samples, bytes.
    """
    low, high = 0, min(len(sizes), MOST_SAMPLES)
    while low < high:  # the largest number that fits
        middle = (low + high + 1) // 2
        fits = sum(sizes[at] for at in _even_places(len(sizes), middle)) <= MOST_BYTES
        low, high = (middle, high) if fits else (low, middle - 1)
    return _even_places(len(sizes), low)


def _even_places(total: int, num: int) -> list[int]:
    """``num`` places out of ``total`` at even distances."""
    return [index * total // num for index in range(num)]


def _scope(of: Shown, setting_name: str, num_shown: int, num: int) -> str:
    """Of which items, seeds and setting the samples are, and what is left out."""
    found = f"{of.shown:,} of {of.num_items:,} items"
    if of.seeds:
        found += f", seed{'s' * (len(of.seeds) > 1)} {', '.join(map(str, of.seeds))}"
    if setting := at_settings(setting_name, [of.setting]):
        found += f" at {setting}"
    if num_shown < num:
        found += (
            f"; {num_shown:,} of {num:,} samples are on this page, an even selection; the others "
            "are in samples.jsonl"
        )
    without = of.without_predictions
    return found + (f"; {_without_predictions(without)}." if without else ".")


def _without_predictions(num: int) -> str:
    return f"{num:,} runs keep no predictions" if num > 1 else "1 run keeps no predictions"


def _anchors(samples: Sequence[Sample]) -> list[str]:
    """A stable anchor for each sample; one whose id has been there gets a number."""
    seen: dict[str, int] = {}
    found = []
    for sample in samples:
        name = "sample-" + quote(visible(sample.id), safe="")
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}!{seen[name]}")  # no quoted id has a "!"
    return found


def _filters(samples: Sequence[Sample], arms: Sequence[str], *, binary: bool) -> str:
    groups = _distinct(sample.group for sample in samples)
    stops = _distinct(a.stop_reason for sample in samples for a in sample.answers)
    has = {sample.flip for sample in samples}
    flips = {flip: words for flip, words in FLIPS[binary].items() if flip in has}
    return (
        '<form id="filters" role="search" aria-label="Samples" hidden>'
        '<label>Search <input type="search" name="words" autocomplete="off"></label>'
        f"{_choice('flip', 'Flip', list(flips), list(flips.values()))}"
        f"{_choice('group', 'Group', groups, groups)}"
        f"{_choice('arm', 'Arm', [str(at) for at in range(len(arms))], arms)}"
        f"{_choice('stop', 'Stop reason', stops, stops)}"
        '<button type="reset">Show all</button>'
        f'<output name="count" aria-live="polite">{len(samples):,} samples</output></form>'
        "<noscript><p>Search and filters need scripts; every sample stands below.</p></noscript>"
    )


def _choice(name: str, label: str, values: Sequence[str], words: Sequence[str]) -> str:
    options = "".join(
        f'<option value="{html(value)}">{html(clipped(word, LONGEST_TEASER))}</option>'
        for value, word in zip(values, words, strict=True)
    )
    every = '<option value="">all</option>'
    return f'<label>{label} <select name="{name}">{every}{options}</select></label>'


def _sample(sample: Sample, anchor: str, arms: Sequence[str], *, binary: bool) -> str:
    flip, group = sample.flip, sample.group
    mark = FLIPS[binary].get(flip, flip).partition(":")[0]
    return (
        f'<details class="sample" id="{html(anchor)}" '
        f'data-flip="{html(flip)}" data-group="{html(group)}">'
        f'<summary><span class="flip">{html(mark)}</span> {isolated(sample.id)} '
        f'<span class="teaser">{isolated(_teaser(sample.prompt))}</span></summary>'
        f'<p class="facts">Group {isolated(group)}; right answer {_golds(sample.golds)}. '
        f'<a href="#{html(anchor)}">Link to this sample</a></p>'
        f"{_text_box(sample.prompt)}{_answers(sample, arms, binary=binary)}</details>"
    )


def _golds(golds: Sequence[str]) -> str:
    shown = ", ".join(f"<b>{isolated(gold)}</b>" for gold in golds[:MOST_GOLDS])
    left = len(golds) - MOST_GOLDS
    return (shown or "unknown") + (f" and {left:,} more" if left > 0 else "")


def _teaser(prompt: str) -> str:
    """The end of a prompt: examples that it begins with are the same in all."""
    words = one_line(prompt)
    return words if len(words) <= LONGEST_TEASER else f"… {words[-LONGEST_TEASER:]}"


def _answers(sample: Sample, arms: Sequence[str], *, binary: bool) -> str:
    by_place: dict[tuple[str, int], dict[str, Answer]] = {}
    for answer in sample.answers:
        by_place.setdefault((answer.setting, answer.seed), {})[answer.arm] = answer
    head = "".join(
        f'<th scope="col" data-arm="{at}">{isolated(arm)}</th>' for at, arm in enumerate(arms)
    )
    rows = "".join(
        f'<tr><th scope="row">{_run_named(*place)}</th>'
        + "".join(_answer(at, answers.get(arm), binary=binary) for at, arm in enumerate(arms))
        + "</tr>"
        for place, answers in by_place.items()
    )
    head = f'<thead><tr><th scope="col">run</th>{head}</tr></thead>'
    return scrolling("Answers of the arms", f"<table>{head}<tbody>{rows}</tbody></table>")


def _run_named(setting: str, seed: int) -> str:
    return (f"{isolated(setting)}, " if setting else "") + f"seed {isolated(str(seed))}"


def _answer(at: int, answer: Answer | None, *, binary: bool) -> str:
    if answer is None:
        return f'<td data-arm="{at}">no completion</td>'
    extracted = answer.extracted
    read = "nothing was read" if extracted is None else f"read as {isolated(extracted)}"
    stop = html(answer.stop_reason)
    mark, words = _score_shown(answer.score, binary=binary)
    return (
        f'<td data-arm="{at}" data-stop="{stop}"><p class="facts"><b class="{mark}">'
        f"{words}</b>, {read}; {answer.new_tokens} tokens, stop: {stop}</p>"
        f"{_text_box(answer.completion)}</td>"
    )


def _score_shown(score: float, *, binary: bool) -> tuple[str, str]:
    """An answer's class and its score in words."""
    if binary and score in {0.0, 1.0}:
        return ("right", "✓ right") if score else ("wrong", "✗ wrong")
    return "partly", f"score {score:.3f}"


def _text_box(text: str) -> str:
    # A <pre> drops a line feed at its start, so one stands before the text.
    return f'<pre dir="auto">\n{html(clipped(text, LONGEST_TEXT))}</pre>'


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
