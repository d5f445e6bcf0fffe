"""The sample browser: every sample is on the page, the script only hides what is not asked for.

A sample stands in a ``<details>`` with an anchor of its own, ``#sample-ID``; answers of the arms
stand side by side, a line for each setting and seed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from schemabank.report.cells import one_line
from schemabank.report.markup import clipped, html, isolated, scrolling, visible

Sample = Mapping[str, Any]
MOST_BYTES = 2_000_000  # of all samples
MARKUP_BYTES = 300  # around an answer
MOST_SAMPLES = 1_000
LONGEST_TEXT = 4_000  # characters of a prompt or a completion
LONGEST_TEASER = 110
FLIPS = {
    "gained": "gained: treatment right, control wrong",
    "lost": "lost: treatment wrong, control right",
    "both": "both right",
    "neither": "neither right",
    "mixed": "mixed over seeds or settings",
}


def browser(samples: Sequence[Sample], first_arms: Sequence[str]) -> str:
    """Return the form and the samples as HTML.

    Args:
        samples: as in ``samples.jsonl``; texts are anybody's.
        first_arms: arms whose answers stand first, treatment and control.
    """
    if not samples:
        return ""
    shown = cut(samples)
    arms = _distinct((*first_arms, *(a["arm"] for s in shown for a in s["answers"])))
    has = {answer["arm"] for sample in shown for answer in sample["answers"]}
    arms = [arm for arm in arms if arm in has]
    anchors = _anchors(shown)
    body = "".join(_sample(s, a, arms) for s, a in zip(shown, anchors, strict=True))
    count = f"{len(shown):,} of {len(samples):,} samples are on this page"
    if len(shown) < len(samples):
        count += ", an even selection; the others are in samples.jsonl"
    return (
        f"<h3>Samples</h3><p>{count}. Each opens on its own; the arms' answers are side by "
        f'side.</p>{_filters(shown, arms)}<div id="samples">{body}</div>'
    )


def cut(samples: Sequence[Sample]) -> list[Sample]:
    """Return an even selection of samples that is small enough for a page."""
    sizes = [_size(sample) for sample in samples]
    low, high = 0, min(len(samples), MOST_SAMPLES)
    while low < high:  # the largest number that fits
        middle = (low + high + 1) // 2
        fits = sum(sizes[at] for at in _places(len(samples), middle)) <= MOST_BYTES
        low, high = (middle, high) if fits else (low, middle - 1)
    return [samples[at] for at in _places(len(samples), low)]


def _places(total: int, num: int) -> list[int]:
    """``num`` places out of ``total`` at even distances."""
    return [index * total // num for index in range(num)]


def _size(sample: Sample) -> int:
    """Bytes of a sample on the page, nearly."""
    texts = [sample["prompt"], *(answer["completion"] for answer in sample["answers"])]
    shown = "".join(html(clipped(text, LONGEST_TEXT)) for text in texts)
    return len(shown.encode()) + MARKUP_BYTES * len(texts)


def _anchors(samples: Sequence[Sample]) -> list[str]:
    """A stable anchor for each sample; one whose id has been there gets a number."""
    seen: dict[str, int] = {}
    found = []
    for sample in samples:
        name = "sample-" + quote(visible(str(sample["id"])), safe="")
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return found


def _filters(samples: Sequence[Sample], arms: Sequence[str]) -> str:
    groups = _distinct(str(sample["group"]) for sample in samples)
    stops = _distinct(str(a["stop_reason"]) for sample in samples for a in sample["answers"])
    has = {sample["flip"] for sample in samples}
    flips = {flip: words for flip, words in FLIPS.items() if flip in has}
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


def _sample(sample: Sample, anchor: str, arms: Sequence[str]) -> str:
    flip, group = html(str(sample["flip"])), str(sample["group"])
    golds = ", ".join(f"<b>{isolated(str(gold))}</b>" for gold in sample["golds"])
    return (
        f'<details class="sample" id="{html(anchor)}" '
        f'data-flip="{flip}" data-group="{html(group)}">'
        f'<summary><span class="flip">{flip}</span> {isolated(str(sample["id"]))} '
        f'<span class="teaser">{isolated(_teaser(sample["prompt"]))}</span></summary>'
        f'<p class="facts">Group {isolated(group)}; right answer {golds or "unknown"}. '
        f'<a href="#{html(anchor)}">Link to this sample</a></p>'
        f"{_text(sample['prompt'])}{_answers(sample, arms)}</details>"
    )


def _teaser(prompt: str) -> str:
    """The end of a prompt: examples that it begins with are the same in all."""
    words = one_line(prompt)
    return words if len(words) <= LONGEST_TEASER else f"… {words[-LONGEST_TEASER:]}"


def _answers(sample: Sample, arms: Sequence[str]) -> str:
    by_place: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for answer in sample["answers"]:
        place = ("" if answer["epochs"] is None else str(answer["epochs"]), str(answer["seed"]))
        by_place.setdefault(place, {})[answer["arm"]] = answer
    head = "".join(
        f'<th scope="col" data-arm="{at}">{isolated(arm)}</th>' for at, arm in enumerate(arms)
    )
    rows = "".join(
        f'<tr><th scope="row">{_place(*place)}</th>'
        f"{''.join(_answer(at, answers.get(arm)) for at, arm in enumerate(arms))}</tr>"
        for place, answers in by_place.items()
    )
    head = f'<thead><tr><th scope="col">run</th>{head}</tr></thead>'
    return scrolling("Answers of the arms", f"<table>{head}<tbody>{rows}</tbody></table>")


def _place(setting: str, seed: str) -> str:
    return (f"{isolated(setting)}, " if setting else "") + f"seed {isolated(seed)}"


def _answer(at: int, answer: Mapping[str, Any] | None) -> str:
    if answer is None:
        return f'<td data-arm="{at}">no run</td>'
    extracted = answer["extracted"]
    read = "nothing was read" if extracted is None else f"read as {isolated(str(extracted))}"
    stop = html(str(answer["stop_reason"]))
    return (
        f'<td data-arm="{at}" data-stop="{stop}"><p class="facts"><b class="{_mark(answer)}">'
        f"{_verdict(answer)}</b>, {read}; {answer['new_tokens']} tokens, stop: {stop}</p>"
        f"{_text(answer['completion'])}</td>"
    )


def _mark(answer: Mapping[str, Any]) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(answer["score"], "partly")


def _verdict(answer: Mapping[str, Any]) -> str:
    words = {"right": "✓ right", "wrong": "✗ wrong"}
    return words.get(_mark(answer), f"score {answer['score']:.3f}")


def _text(text: str) -> str:
    # A <pre> drops a line feed at its start, so one stands before the text.
    return f'<pre dir="auto">\n{html(clipped(text, LONGEST_TEXT))}</pre>'


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
