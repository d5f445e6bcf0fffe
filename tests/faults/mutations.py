"""Harm to files by a seed: bytes, values, structure, names and what would be executed.

Every mutation takes a folder and draws one file of those that are asked for; some write files
beside it. ``tests/damage.py`` has the ones that every format shares.
"""

import gzip
import io
import json
import lzma
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from damage import VALUES, damage
from faults.canary import Canary

LISTED = (".json", ".jsonl")
TABLES = (".csv", ".tsv")
NAMES = (
    "../x",
    "..",
    "/etc/passwd",
    "a/b",
    "",
    ".",
    "x" * 300,
    "a\x00b",
    "con",
    "-rf",
    "a\nb",
    "\ud800",
)
NUMBERS = ("NaN", "-inf", "1e999", "9" * 400, "-0", "0x10", "1_0", "1,5", "", "true", "٣", "1e-400")
DTYPES = ("F32", "F64", "BOOL", "U8", "F8_E4M3", "x", "", "I64", "BF16")
AUTO = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer")
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
MEMBERS = (tarfile.REGTYPE, *LINKS, tarfile.CHRTYPE, tarfile.FIFOTYPE)
LARGE = (0, 1, 7, 2**31, 2**40, 2**63 - 1, 2**64 - 1)


class Draw(random.Random):
    """Draws what is done, the same by the same seed, with payloads of a canary."""

    def __init__(self, seed: int, canary: Canary) -> None:
        super().__init__(seed)
        self.canary = canary


def harm(folder: Path, draw: Draw) -> str:
    """Harm a folder's files in one way, or in several, and say how."""
    said = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        paths = list(folder.rglob("*"))
        if not any(path.is_file() for path in paths) or any(path.is_fifo() for path in paths):
            break  # whoever wrote into a pipe would wait
        with suppress(OSError, RecursionError):  # what an earlier one has made of it
            is_aimed = draw.random() < 0.6
            said.append(_aimed(folder, draw) if is_aimed else damage(folder, draw))
    return "; ".join(said)


def _aimed(folder: Path, draw: Draw) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if not files:
        return "links alone are left"
    path = draw.choice(files)
    found = _mutations(path)
    one = draw.choice(found)
    return f"{path.relative_to(folder)}: {one.__name__} {one(path, draw)}"


Mutation = Callable[[Path, Draw], str]


def _mutations(path: Path) -> Sequence[Mutation]:
    """Those for a file by its format; the ones of a format are drawn more often."""
    every: list[Mutation] = [_pickle, _spliced, _linked, _text]
    if path.suffix in LISTED:
        every += [_value, _value, _payload_value, _keys, _deep]
    if path.suffix == ".yaml":
        every += [_yaml, _yaml, _aliases, _payload_line]
    if path.suffix in TABLES:
        every += [_cell, _cell, _rows, _payload_cell]
    if path.suffix == ".safetensors":
        every += [_header, _header, _header]
    if path.suffix in {".eval", ".xz", ".gz"}:
        every += [_packed, _packed]
    if path.name in {"config.json", "tokenizer_config.json", "adapter_config.json"}:
        every += [_remote, _template, _remote]
    return every


def _pickle(path: Path, draw: Draw) -> str:
    """A pickle in the place of a file, or beside weights under the names that loaders look for."""
    if draw.random() < 0.5 and path.suffix == ".safetensors":
        path.unlink()
        path = path.with_name(draw.choice(("pytorch_model.bin", "adapter_model.bin", "bank.pt")))
    path.write_bytes(draw.canary.pickle)
    return path.name


def _spliced(path: Path, draw: Draw) -> str:
    content = path.read_bytes()
    other = draw.choice(sorted(p for p in path.parent.iterdir() if p.is_file())).read_bytes()
    at, start = draw.randrange(len(content) + 1), draw.randrange(len(other) + 1)
    path.write_bytes(
        content[:at] + other[start : start + draw.choice((1, 40, 4000))] + content[at:]
    )
    return f"at {at}"


def _linked(path: Path, draw: Draw) -> str:
    targets = ("/etc/passwd", "/proc/self/environ", "/dev/zero", "/dev/stdin", "../..", path.name)
    target = draw.choice((*targets, str(draw.canary.path)))
    path.unlink()
    # Tables and settings may come from a pipe, for whose writer a reader waits.
    if draw.random() < 0.1 and path.suffix not in {".yaml", *TABLES}:
        os.mkfifo(path)
        return "a pipe that nobody writes"
    path.symlink_to(target)
    return target


def _text(path: Path, draw: Draw) -> str:
    said = draw.choice(draw.canary.texts)
    content = path.read_bytes()
    at = draw.randrange(len(content) + 1)
    path.write_bytes(content[:at] + said.encode() + content[at:])
    return f"a payload at {at}"


def _trees(path: Path) -> list[Any]:
    """The JSON of a file: one value, or one a line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else [json.loads(text)]
        )
    except (ValueError, RecursionError):
        return []


def _write_trees(path: Path, trees: Sequence[Any]) -> None:
    with suppress(ValueError, RecursionError):
        path.write_text("\n".join(map(json.dumps, trees)) + "\n", encoding="utf-8")


def _change(path: Path, draw: Draw, value: object) -> str:
    """Change one value of JSON."""
    trees = _trees(path)
    places = list(_places(draw.choice(trees))) if trees else []
    if not places:
        return "left as it was"
    inside, key = draw.choice(places)
    inside[key] = value
    _write_trees(path, trees)
    return f"{key!r} = {value!r:.40}"


def _value(path: Path, draw: Draw) -> str:
    return _change(path, draw, draw.choice((*VALUES, *NAMES)))


def _payload_value(path: Path, draw: Draw) -> str:
    return _change(path, draw, draw.choice(draw.canary.texts))


def _keys(path: Path, draw: Draw) -> str:
    """A key twice, or with another value under a name as alike."""
    text = path.read_text(encoding="utf-8", errors="replace")
    at = text.find("{")
    key = draw.choice(("arm", "seed", "id", "question", "r", "results", "__proto__", "__class__"))
    path.write_text(f'{text[: at + 1]}"{key}": {json.dumps(draw.choice(VALUES))}, {text[at + 1 :]}')
    return key


def _deep(path: Path, draw: Draw) -> str:
    depth = draw.choice((50, 70, 990, 5000, 100_000))
    start, end = draw.choice((("[", "]"), ('{"a":', "}")))
    path.write_text(start * depth + ("1" if start != "[" else "") + end * depth)
    return f"{depth} deep"


def _places(tree: object) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from _places(value)


def _replaced_value(path: Path, draw: Draw, value: str) -> str:
    """Put another value behind a key of YAML."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    at = draw.randrange(len(lines))
    lines[at] = f"{lines[at].partition(':')[0]}: {value}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return f"{lines[at]!r:.60}"


def _yaml(path: Path, draw: Draw) -> str:
    return _replaced_value(
        path, draw, draw.choice((*draw.canary.yaml, *NUMBERS, "{<<: *x}", "? [a]", "!!set {a}"))
    )


def _aliases(path: Path, draw: Draw) -> str:
    """Aliases that stand for very many values, or for themselves."""
    levels, own = draw.randrange(2, 40), draw.randrange(2, 12)
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * own)}]" for n in range(1, levels)]
    lines += ["me: &me [*me]"] if draw.random() < 0.3 else []
    path.write_text("\n".join(lines) + "\n" + path.read_text(encoding="utf-8", errors="replace"))
    return f"{own}^{levels} values"


def _payload_line(path: Path, draw: Draw) -> str:
    return _replaced_value(path, draw, json.dumps(draw.choice(draw.canary.texts)))


def _put_cell(path: Path, draw: Draw, value: str) -> str:
    mark = "\t" if path.suffix == ".tsv" else ","
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    row = draw.randrange(len(lines))
    cells = lines[row].split(mark)
    cells[draw.randrange(len(cells))] = value
    lines[row] = mark.join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return f"row {row}: {value!r:.40}"


def _cell(path: Path, draw: Draw) -> str:
    return _put_cell(path, draw, draw.choice((*NUMBERS, *NAMES, '"', '"x', 'a"b', "x" * 200_000)))


def _payload_cell(path: Path, draw: Draw) -> str:
    return _put_cell(path, draw, draw.choice(draw.canary.texts))


def _rows(path: Path, draw: Draw) -> str:
    """Rows twice, in another order, or very many."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    # Long tables take long, and rightly so: 500 times 500 are millions of rows.
    times = draw.choice((1, 2, 3, 500 if len(lines) < 500 else 4))
    body = lines[1:] * times
    draw.shuffle(body)
    path.write_text(
        "\n".join([*lines[: draw.choice((0, 1, 1, 2))], *body]) + "\n",
        encoding="utf-8",
        errors="replace",
    )
    return f"{times} times"


def _header(path: Path, draw: Draw) -> str:
    """A head of safetensors that says something else than the file holds."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0] if len(content) > 8 else 0
    try:
        head = json.loads(content[8 : 8 + size])
        name, own = draw.choice(sorted((n, v) for n, v in head.items() if "dtype" in v))
    except (ValueError, AttributeError, TypeError, IndexError):  # as another harm has left it
        return "left as it was"
    kind = draw.choice(("offsets", "shape", "dtype", "name", "size", "twice", "metadata", "more"))
    numbers = [draw.choice(LARGE) for _ in range(draw.choice((1, 2, 2, 9)))]
    if kind in {"offsets", "shape"}:
        own["data_offsets" if kind == "offsets" else "shape"] = numbers
    elif kind == "dtype":
        own["dtype"] = draw.choice(DTYPES)
    elif kind == "name":
        head[draw.choice((*NAMES[:7], *draw.canary.texts))] = head.pop(name)
    elif kind == "metadata":
        head["__metadata__"] = draw.choice(
            ({"a": "x" * 10_000}, {"about": "[" * 9999}, 3, {"a": 1})
        )
    elif kind == "more":
        head |= {f"extra.{n}": own for n in range(2000)}
    said = json.dumps(head).encode("utf-8", "replace")
    if kind == "twice":
        said = said[:-1] + b"," + said[1:]
    told = draw.choice(LARGE) if kind == "size" else len(said)
    path.write_bytes(struct.pack("<Q", told) + said + content[8 + size :])
    return f"{kind} {name}"


def _packed(path: Path, draw: Draw) -> str:
    """An archive with members that lie elsewhere, link, or unpack to very much."""
    out = (str(draw.canary.path), f"../../..{draw.canary.path}")
    name = draw.choice((*NAMES[:6], *out, "header.json", "a.json")) or "x"
    much = bytes(draw.choice((0, 10, 50_000_000)))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(much, compresslevel=1, mtime=0))
    elif path.suffix == ".eval":
        with zipfile.ZipFile(path, draw.choice("wa"), zipfile.ZIP_DEFLATED, compresslevel=1) as own:
            own.writestr(name, much)
    else:
        path.write_bytes(lzma.compress(_tar(name, draw), preset=0))
    return f"{name!r:.40}"


def _tar(name: str, draw: Draw) -> bytes:
    file, member = io.BytesIO(), tarfile.TarInfo(name)
    member.type = draw.choice(MEMBERS)
    member.size = 10 if member.isreg() else 0
    member.linkname = draw.choice(("/etc/passwd", "../..", "x"))
    with tarfile.open(fileobj=file, mode="w") as packed:
        packed.addfile(member, io.BytesIO(bytes(10)))
    return file.getvalue()


def _remote(path: Path, draw: Draw) -> str:
    """Code of a model's own, which nothing may import."""
    code = draw.choice(("modeling_own", "configuration_own", "custom", "sitecustomize"))
    (path.parent / f"{code}.py").write_text(draw.canary.python)
    said: dict[str, object] = {"auto_map": dict.fromkeys(AUTO, f"{code}.Own")}
    if path.name == "tokenizer_config.json":
        said["tokenizer_class"] = draw.choice(("Own", f"{code}.Own", "PreTrainedTokenizerFast"))
    elif path.name == "config.json":
        said["model_type"] = draw.choice(("own", "llama", "../own"))
    else:
        said["peft_type"] = draw.choice(("LORA", "OWN"))
    _say(path, said)
    return code


def _template(path: Path, draw: Draw) -> str:
    """A template of chats that reaches for more than its messages."""
    said = draw.choice(draw.canary.templates)
    if draw.random() < 0.5:
        (path.parent / "chat_template.jinja").write_text(said)
        return f"a file: {said:.40}"
    _say(path.parent / "tokenizer_config.json", {"chat_template": said})
    return said[:40]


def _say(path: Path, said: Mapping[str, object]) -> None:
    """Put values into the object of a file, if it is one."""
    trees = _trees(path) if path.is_file() else []
    if trees and isinstance(trees[0], dict):
        _write_trees(path, [{**trees[0], **said}])
