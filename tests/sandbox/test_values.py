"""Values, exceptions and objects of the code, as the tests get them."""

from collections import Counter, OrderedDict, deque  # noqa: F401 -- named in values below
from datetime import date, datetime, time, timedelta, timezone  # noqa: F401 -- as these
from functools import partial

import pytest

import hostile
from schemabank.sandbox import check_asserts, check_function, wire

ENOUGH = {"timeout_s": 30.0, "memory_mib": 1024}


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "1", "-(2**63)", "2**63", "10**3000", "1.5", "float('inf')", "1e-320",
        "'a\\udc80\\n\\0'", "b'\\xff'", "bytearray(b'x')", "2j", "[1, (2, {3}), {}]", "()",
        "{1: 'a', (2, 3): {'b': [None]}}", "frozenset({1})", "range(3)", "set()", "int",
        "date(2020, 2, 29)", "time(1, 2, 3, 4)", "time(1, tzinfo=timezone.utc, fold=1)",
        "datetime(2020, 1, 2, 3, 4, 5, 6)", "datetime(2020, 1, 2, tzinfo=timezone.utc)",
        "timezone(timedelta(hours=-3), 'X')", "timedelta(-1, 2, 3)", "datetime.max",
        "deque([1, (2,)])", "deque([1], 3)", "Counter('aab')", "OrderedDict([(2, 1), (1, 2)])",
        "{1: 2}.keys()", "{1: [2]}.items()", "deque",
    ],
)  # fmt: skip
def test_values_arrive_as_they_are(value: str) -> None:
    def nothing(*_: object) -> int:
        raise AssertionError

    expected = eval(value)  # noqa: S307 -- the literals above
    encoded = wire.encode(expected, nothing)
    arrived = wire.decode(wire.from_json(wire.to_json(encoded)), nothing, nothing)
    assert arrived == expected
    assert type(arrived) is type(expected)


@pytest.mark.parametrize(
    "data",
    ["{}", "[]", '["list", {}]', '["object"]', '["eval", "1"]', '["set", ["list"]]', '["int", 1]',
     '["dict", 1]', '["complex", "x"]', '["Decimal", "x"]', '["Fraction", "1", "0"]', "[", "nul",
     '["date", 2020, 13, 1]', '["date", 2020]', '["datetime", 1]', '["deque", ["list"], -1]',
     '["timezone", 1]', '["time", 1, 2, 3, 4, "x", 0]', '["timedelta", 1e300]', '["Counter", 1]',
     '["dict_keys", ["list"]]', '["sub", 1]', '["sub", 1, {}]', '["KEYS"]', '["date", [], 1, 1]',
     '["range", "1", "1", "0"]', '["type", "eval"]', "[[[", '["list",' * 200 + "1" + "]" * 200],
)  # fmt: skip
def test_anything_else_is_no_value(data: str) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(wire.from_json(data.encode()), lambda _: 0, lambda *_: 0)


def test_values_follow_the_tests_own_equality() -> None:
    check = partial(check_asserts, **ENOUGH)
    echo = "from collections import *\nfrom fractions import *\ndef f(x): return "
    assert check(f"{echo}x == 1", ["assert f(1) == 1"]).passed  # True is 1 for Python
    assert check(f"{echo}x / 2", ["assert f(4) == 2"]).passed
    assert check(f"{echo}Fraction(x, 2)", ["assert abs(f(1) - 0.5) < 1e-9"]).passed
    assert check(f"{echo}Counter(x)", ["assert f('aab') == {'a': 2, 'b': 1}"]).passed
    assert check(f"{echo}(i * i for i in x)", ["assert list(f([1, 2])) == [1, 4]"]).passed
    assert check(f"{echo}map(str, x)", ["assert set(f([1, 2])) == {'1', '2'}"]).passed
    assert not check(f"{echo}deque(x)", ["assert f([1]) == [1]"]).passed
    assert not check(f"{echo}map(str, x)", ["assert f([1]) == ['1']"]).passed
    # No comparison that the code itself could have written is ever asked.
    equal = hostile.EQUAL.replace("BASE", "object") + "def f(x): return Equal()"
    for test in ("f(1) == 1", "1 == f(1)", "f(1) in [1]", "not f(1) != 1", "f(1) == [f(2)]"):
        assert not check(equal, [f"assert {test}"]).passed, test
    # Two objects of the code's are its own matter: it might as well return the same one twice.
    assert check(equal, ["assert f(1) == f(2) and not f(1) != f(2)"]).passed
    assert check("def f(x): return None", ["assert f(1) == f(2)"]).passed
    for test in ("f(1) is f(2)", "f(1) != f(2)"):
        assert not check(equal, [f"assert {test}"]).passed, test


def test_arguments_go_by_value() -> None:
    source = "def f(x):\n    x.clear()\n    return [1]"
    test = "def check(candidate):\n    x = [1]\n    assert candidate(x) == x"
    assert check_function(source, "f", test, **ENOUGH).passed


@pytest.mark.parametrize(
    ("raised", "caught", "reason"),
    [
        ("KeyError", "KeyError", "passed"),
        ("KeyError", "LookupError", "passed"),
        ("class E(Exception): pass", "ValueError", "exception"),
        ("class ValueError(Exception): pass", "ValueError", "exception"),
        ("class E(ValueError): pass", "ValueError", "passed"),
        ("import json; E = json.JSONDecodeError('', '', 0)", "ValueError", "passed"),
        ("E = UnicodeDecodeError('utf-8', b'', 0, 1, '')", "ValueError", "passed"),
        ("E = ExceptionGroup('', [ValueError()])", "Exception", "passed"),
        ("class E(BaseException): pass", "Exception", "passed"),
        ("StopIteration", "RuntimeError", "passed"),
        ("class E(StopIteration): pass", "StopIteration", "exception"),
        ("class M(type): __mro__ = (ValueError,)\nclass E(Exception, metaclass=M): pass",
         "ValueError", "exception"),
    ],
)  # fmt: skip
def test_exceptions_reach_the_tests_as_the_nearest_builtin(
    raised: str, caught: str, reason: str
) -> None:
    definition, name = (raised, "E") if " " in raised else ("", raised)
    name = "ValueError" if "class ValueError" in raised else name
    source = f"{definition}\ndef f(x): raise {name}"
    test = f"def check(f):\n    try: f(1)\n    except {caught}: return\n    assert False"
    assert check_function(source, "f", test, timeout_s=10, memory_mib=512).reason == reason


def test_a_stopped_iteration_ends_no_loop_of_the_tests() -> None:
    for test in ("all(map(f, [2]))", "[f(2) for _ in [1]]", "list(f(2) for _ in [1]) == []"):
        source = "def f(x): raise StopIteration"
        verdict = check_asserts(source, [f"assert {test}"], entry_point="f", **ENOUGH)
        assert verdict.reason == "exception"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("source", "test", "reason"),
    [
        ("def f(x): return x", f"f({nested(90)}) == {nested(90)}", "passed"),
        ("def f(x): return x", f"f([f([f({nested(90)})])]) == [[{nested(90)}]]", "passed"),
        ("def f(x): return str(x)", f"f({nested(90)}) == {nested(90)!r}", "passed"),
        ("def f(x): return str(x)", "f(deep(250)) == str(deep(250))", "passed"),
        ("def f(x): return x", "f(deep(250))", "reply too large"),
        ("def f(x): return len(x)", "f(list(range(10**6))) == 10**6", "passed"),
        ("def f(x): return [0] * 400_000", "len(f(f(1) + f(2))) == 400_000", "passed"),
        ("def f(x):\n    for _ in range(99): x = [x]\n    return x", "f(f(1))", "reply too large"),
        ("def f(x):\n    while True: x = [x]", "f(1)", "timeout"),
        ("def f(x):\n    for _ in range(10**5): x = [x]\n    return x", "f(1)", "reply too large"),
    ],
)
def test_depth_and_length_are_the_codes_matter_or_nobodys(
    source: str, test: str, reason: str
) -> None:
    setup = "def deep(n):\n    x = []\n    for _ in range(n): x = [x]\n    return x"
    limit_s = 5 if reason == "timeout" else 30
    verdict = check_asserts(
        source, [f"assert {test}"], setup=setup, entry_point="f", timeout_s=limit_s, memory_mib=4096
    )
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("f().__class__ is not None", "passed"),
        ("str(f()) == 'text' == f'{f()}'", "passed"),
        ("f()[1:3] == [1, 2] and f()[1] == 1", "passed"),
        ("f()['no'] == 1", "exception"),
        ("repr(f()) == 'text'", "passed"),
        ("f'{f()!r}' == 'text'", "passed"),
        ("next(f()) == 0", "passed"),
        ("next(iter(f())) == 0", "passed"),
        ("f() + 1 == 1", "wrong answer"),
        ("f() < 1", "wrong answer"),
        ("f() < f()", "exception"),
        ("f() + f()", "exception"),
        ("f() == f()", "wrong answer"),
        ("abs(f()) == 1", "wrong answer"),
        ("float(f()) == 1", "wrong answer"),
        ("abs(f() - 1) < 1", "wrong answer"),
        ("hash(f()) == 0", "wrong answer"),
        ("__import__('copy').deepcopy(f()) == f()", "wrong answer"),
        ("__import__('pickle').dumps(f())", "wrong answer"),
        ("list(reversed(f())) == [2, 1, 0] and 2 in f()", "passed"),
    ],
)
def test_what_tests_can_do_with_an_object_of_the_codes(test: str, reason: str) -> None:
    source = """
class Items:
    def __getitem__(self, key): return [0, 1, 2][key]
    def __len__(self): return 3
    def __str__(self): return "text"
    __repr__ = __str__
    def __next__(self): return 0
def f(): return Items()
"""
    verdict = check_asserts(
        source, [f"assert {test}"], entry_point="f", timeout_s=10, memory_mib=512
    )
    assert verdict.reason == reason


def test_exceptions_of_the_pipes_kind_are_the_codes_own() -> None:
    test = """
def check(candidate):
    try:
        candidate(1)
    except EOFError:
        return
    assert False
"""
    for source, reason in (
        ("def f(x): raise EOFError", "passed"),
        ("def f(x): raise BrokenPipeError", "exception"),
    ):
        assert check_function(source, "f", test, timeout_s=10, memory_mib=512).reason == reason


def test_asserts_may_make_objects_of_the_codes_classes() -> None:
    source = """
class Node:
    def __init__(self, value): self.value, self.left = value, None
def depth(node): return 0 if node is None else 1 + depth(node.left)
"""
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)"
    asserts = ["assert depth(root) == 3", "assert root.left.value == 2"]
    assert check_asserts(source, asserts, setup=setup, **ENOUGH).passed
    assert not check_asserts(source, ["assert depth(root) == 2"], setup=setup, **ENOUGH).passed
