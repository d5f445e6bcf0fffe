"""Correct solutions of many kinds pass; what is refused is a case that the page names.

Each is judged twice: in plain Python, which has to accept it, and in the sandbox.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemabank.common.cores import given_cores
from schemabank.sandbox import check_asserts

PAGE = Path(__file__).parents[2] / "docs" / "sandbox.md"
DATES = "from datetime import *\n"
COLLECTIONS = "from collections import *\n"
ENUM = "from enum import *\nclass Color(Enum):\n    RED = 1\n    BLUE = 2\n"
POINT = (
    "from dataclasses import dataclass\n@dataclass(order=True, frozen=True)\nclass Point:\n"
    "    x: int\n    y: int\n    def __add__(self, other):\n"
    "        return Point(self.x + other.x, self.y + other.y)\n"
    "    def __mul__(self, by): return Point(self.x * by, self.y * by)\n"
    "    def __abs__(self): return self.x + self.y\n"
)
PAIR = "from collections import namedtuple\nPair = namedtuple('Pair', 'a b')\n"
PRIMES = (
    "def primes():\n    n = 2\n    while True:\n"
    "        if all(n % d for d in range(2, n)): yield n\n        n += 1\n"
)
STACK = (
    "class Stack:\n    def __init__(self, items=()): self.items = list(items)\n"
    "    def push(self, item): self.items.append(item)\n"
    "    def pop(self): return self.items.pop()\n"
    "    def __len__(self): return len(self.items)\n"
    "    def __bool__(self): return bool(self.items)\n"
    "    def __iter__(self): return iter(self.items)\n"
    "    def __getitem__(self, key): return self.items[key]\n"
    "    def __eq__(self, other): return list(self) == list(other)\n"
    "    def __repr__(self): return f'Stack({self.items})'\n"
    "    def __contains__(self, item): return item in self.items\n"
)
TRIE = "class Trie:\n    def __contains__(self, word): return word == 'a'\n"

# Code, and asserts that it passes.
ACCEPTED = [
    (f"{DATES}def f(y): return date(y, 2, 3)", "f(2020) == datetime.date(2020, 2, 3)"),
    (f"{DATES}def f(d): return d + timedelta(days=1)",
     "f(datetime.date(2020, 2, 28)) == datetime.date(2020, 2, 29)"),
    (f"{DATES}def f(): return datetime(2020, 1, 2, 3, 4, 5, 6)",
     "f().isoformat() == '2020-01-02T03:04:05.000006'"),
    (f"{DATES}def f(): return datetime(2020, 1, 2, tzinfo=timezone.utc)",
     "f() == datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc)"),
    (f"{DATES}def f(): return datetime(2020, 1, 2, tzinfo=timezone(timedelta(hours=2), 'X'))",
     "f().tzname() == 'X' and f().utcoffset().seconds == 7200"),
    (f"{DATES}def f(): return time(1, 2)", "f() == datetime.time(1, 2)"),
    (f"{DATES}def f(a, b): return b - a",
     "f(datetime.date(2020, 1, 1), datetime.date(2020, 3, 1)).days == 60"),
    (f"{DATES}def f(): return [timedelta(1)]", "sum(f(), datetime.timedelta()).days == 1"),
    (f"{DATES}def f(): return {{date(2020, 1, 1): 1}}", "f()[datetime.date(2020, 1, 1)] == 1"),
    (f"{DATES}def f(a): return sorted(a)",
     "f([datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)])[0].day == 1"),
    (f"{DATES}def f(): return timezone.utc", "f() == datetime.timezone.utc"),
    (f"{COLLECTIONS}def f(x): return deque(x)", "f([1, 2]) == collections.deque([1, 2])"),
    (f"{COLLECTIONS}def f(x): return deque(x, 2)", "f([1, 2, 3]).maxlen == 2"),
    (f"{COLLECTIONS}def f(x): return deque(x)", "f([1, 2]).popleft() == 1"),
    (f"{COLLECTIONS}def f(q): return q.pop()", "f(collections.deque([1, 2])) == 2"),
    (f"{COLLECTIONS}def f(x): return Counter(x)", "f('aab').most_common(1) == [('a', 2)]"),
    (f"{COLLECTIONS}def f(x): return Counter(x)", "f('aab')['z'] == 0"),
    (f"{COLLECTIONS}def f(x): return Counter(x)", "f('aab') - f('a') == {'a': 1, 'b': 1}"),
    (f"{COLLECTIONS}def f(x): return OrderedDict(x)",
     "f([(1, 2), (3, 4)]) != collections.OrderedDict([(3, 4), (1, 2)])"),
    (f"{COLLECTIONS}def f(): return defaultdict(int, a=1)", "f() == {'a': 1} and f()['z'] == 0"),
    (f"{COLLECTIONS}def f(): return defaultdict(list)", "f()['z'] == []"),
    (f"{COLLECTIONS}def f(): return ChainMap({{'a': 1}}, {{'b': 2}})", "f()['b'] == 2"),
    (f"{COLLECTIONS}def f(): return UserList([1, 2])", "f()[1] == 2 and len(f()) == 2"),
    ("def f(): return {'a': 1}.keys()", "f() == {'a'}"),
    ("def f(): return {'a': 1}.items()", "f() == {('a', 1)}"),
    ("def f(): return {'a': 1}.values()", "list(f()) == [1]"),
    ("def f(): return {'a': 1}.keys()", "sorted(f()) == ['a'] and 'a' in f()"),
    (ENUM + "def f(x): return Color(x)", "f(1) == Color.RED"),
    (ENUM + "def f(x): return Color(x)", "f(1) is Color.RED"),
    (ENUM + "def f(x): return Color(x)", "f(1) != Color.BLUE"),
    (ENUM + "def f(x): return Color(x)", "f(1).name == 'RED' and f(2).value == 2"),
    (ENUM + "def f(x): return [Color(x)]", "f(1) == [Color.RED] and Color.RED in f(1)"),
    (ENUM + "def f(): return {Color.RED: 'r'}", "f()[Color.RED] == 'r'"),
    (ENUM + "def f(): return set(Color)", "f() == {Color.RED, Color.BLUE}"),
    (ENUM + "def f(x): return x is Color.RED", "f(Color.RED) and not f(Color.BLUE)"),
    (ENUM + "def f(x): return Color(x)", "isinstance(f(1), Color)"),
    (ENUM + "def f(x): return Color(x)", "str(f(1)) == 'Color.RED'"),
    (ENUM + "def f(x): return Color(x)", "f(1) == Color['RED'] == Color(1)"),
    (ENUM + "def f(): return Color", "len(f()) == 2 and [c.name for c in f()] == ['RED', 'BLUE']"),
    ("from enum import *\nclass Level(IntEnum):\n    LOW = 1\ndef f(): return Level.LOW",
     "f() == 1 and f() == Level.LOW and f().name == 'LOW'"),
    ("from enum import *\nclass Kind(str, Enum):\n    A = 'a'\ndef f(): return Kind.A",
     "f() == 'a' and f().value == 'a' and f().upper() == 'A'"),
    ("from enum import *\nclass Bits(Flag):\n    A = 1\n    B = 2\ndef f(): return Bits.A",
     "f() | Bits.B == Bits(3)"),
    (POINT + "def f(x): return Point(x, 2)", "f(1) == Point(1, 2)"),
    (POINT + "def f(x): return Point(x, 2)", "f(1) != Point(2, 2)"),
    (POINT + "def f(x): return [Point(x, 2)]", "f(1) == [Point(1, 2)]"),
    (POINT + "def f(x): return {Point(x, 2)}", "f(1) == {Point(1, 2)}"),
    (POINT + "def f(x): return {Point(x, 2): 'a'}", "f(1)[Point(1, 2)] == 'a'"),
    (POINT + "def f(x): return Point(x, 2)", "f(1) < Point(1, 3) and f(1) >= Point(0, 9)"),
    (POINT + "def f(x): return Point(x, 2)", "f(1) + Point(1, 1) == Point(2, 3)"),
    (POINT + "def f(x): return Point(x, 2)", "repr(f(1)) == 'Point(x=1, y=2)'"),
    (POINT + "def f(x): return Point(x, 2)", "isinstance(f(1), Point)"),
    (POINT + "def f(x): return Point(x, 2)", "(f(1).x, f(1).y) == (1, 2)"),
    (POINT + "def f(x): return [Point(2, 1), Point(x, 1)]", "sorted(f(1))[0] == Point(1, 1)"),
    (POINT + "def f(x): return max(x)", "f([Point(1, 2), Point(3, 4)]) == Point(3, 4)"),
    (POINT + "def f(x): return Point(x, 2)", "f'{f(1)}' == 'Point(x=1, y=2)' == f'{f(1)!r}'"),
    (PAIR + "def f(a, b): return Pair(a, b)", "f(1, 2) == (1, 2)"),
    (PAIR + "def f(a, b): return Pair(a, b)",
     "f(1, 2).a == 1 and f(1, 2)._asdict() == {'a': 1, 'b': 2}"),
    (PAIR + "def f(a, b): return Pair(a, b)",
     "f(1, 2) == Pair(1, 2) and isinstance(f(1, 2), Pair)"),
    (PAIR + "def f(pair): return pair.a", "f(Pair(1, 2)) == 1"),
    (PAIR + "def f(a, b): return [Pair(a, b)]", "[p.b for p in f(1, 2)] == [2]"),
    ("class Celsius(float):\n    def warm(self): return self > 20\ndef f(x): return Celsius(x)",
     "f(21.5) == 21.5 and f(21.5).warm()"),
    ("class Name(str):\n    def first(self): return self[0]\ndef f(x): return Name(x)",
     "f('ab') == 'ab' and f('ab').first() == 'a'"),
    (PRIMES + "f = primes", "next(f()) == 2"),
    (PRIMES + "f = primes", "list(itertools.islice(f(), 5)) == [2, 3, 5, 7, 11]"),
    (PRIMES + "f = primes", "[p for p, _ in zip(f(), range(3))] == [2, 3, 5]"),
    (PRIMES + "f = primes", "next(p for p in f() if p > 100) == 101"),
    ("def f(n):\n    yield from range(n)", "list(f(3)) == [0, 1, 2] and sum(f(2000)) == 1999000"),
    ("def f(n):\n    yield from range(n)", "next(f(0), None) is None"),
    ("def f():\n    yield 1\n    while True: pass", "next(iter(f())) == 1"),
    ("def f(): return map(str, [1, 2])", "list(f()) == ['1', '2']"),
    ("def f(): return reversed([1, 2])", "list(f()) == [2, 1]"),
    ("def f(): return zip([1], 'a')", "dict(f()) == {1: 'a'}"),
    ("class Countdown:\n    def __init__(self, n): self.n = n\n"
     "    def __iter__(self): return self\n"
     "    def __next__(self):\n        self.n -= 1\n        if self.n < 0: raise StopIteration\n"
     "        return self.n\ndef f(n): return Countdown(n)",
     "list(f(3)) == [2, 1, 0] and next(f(3)) == 2"),
    (STACK + "f = Stack", "f([1]) == Stack([1]) and f([1]) != Stack()"),
    (STACK + "f = Stack", "(s := f(), s.push(1), s.push(2), s.pop())[-1] == 2"),
    (STACK + "f = Stack", "not f() and len(f([1])) == 1 and list(f([1])) == [1]"),
    (STACK + "f = Stack", "str(f([1])) == 'Stack([1])' and 1 in f([1]) and f([1, 2])[-1] == 2"),
    (STACK + "    def __setitem__(self, key, value): self.items[key] = value\n"
     "    def __delitem__(self, key): del self.items[key]\nf = Stack", "changed(f([1, 2])) == [3]"),
    ("def f(x): raise ValueError('no such thing')", "said(f, ValueError) == 'no such thing'"),
    ("def f(x): return {}[x]", "said(f, KeyError) == '1'"),
    ("class Bad(ValueError): pass\ndef f(x): raise Bad(x, 'b')",
     "said(f, ValueError) == \"(1, 'b')\""),
    ("def f(x): return lambda y: x + y", "f(1)(2) == 3"),
    ("from functools import *\ndef f(x): return partial(pow, x)", "f(2)(3) == 8"),
    ("def f(g): return g", "f(f) is f"),
    ("def f(): return f", "f() == f"),
    ("from fractions import *\ndef f(x): return Fraction(x, 2)",
     "f(1) == 0.5 and f(1).denominator == 2"),
    ("from decimal import *\ndef f(x): return Decimal(x)", "f('0.10') == decimal.Decimal('0.1')"),
    ("def f(x): return complex(x, 1)", "f(1) == 1 + 1j"),
    ("def f(): return bytearray(b'a')", "f() == b'a'"),
    ("def f(): return range(3)", "f() == range(3) and list(f()) == [0, 1, 2]"),
    ("def f(): return frozenset([1])", "f() == {1}"),
    ("import re\ndef f(s): return re.match('(a)(b)', s)", "f('ab').group(2) == 'b'"),
    ("import uuid\ndef f(): return uuid.UUID(int=1)", "str(f()).endswith('1') and f().int == 1"),
    ("import pathlib\ndef f(p): return pathlib.PurePosixPath(p) / 'a'", "str(f('b')) == 'b/a'"),
    ("import array\ndef f(): return array.array('i', [1, 2])", "list(f()) == [1, 2]"),
    ("import itertools\ndef f(x): return itertools.accumulate(x)", "list(f([1, 2])) == [1, 3]"),
    ("import threading\nlock = threading.Lock()\ndef f():\n    with lock: return 1", "f() == 1"),
    ("import sqlite3\ndef f(): return sqlite3.connect(':memory:').execute('select 2').fetchone()",
     "f() == (2,)"),
    ("import asyncio\nasync def g(): return 3\ndef f(): return asyncio.run(g())", "f() == 3"),
]  # fmt: skip

# Code that plain Python accepts, and the sandbox does not: the case on the page, and the reason.
REFUSED = [
    ("own equality with a value", STACK + "f = Stack", "f([1]) == [1]", "wrong answer"),
    ("own comparison with a value", STACK + "f = Stack",
     "f([1]) in [[1]]", "wrong answer"),
    ("own arithmetic with a value", POINT + "f = Point", "f(1, 2) * 2 == Point(2, 4)",
     "wrong answer"),
    ("own conversion to a number", POINT + "f = Point", "abs(f(1, 2)) == 3", "wrong answer"),
    ("own `in`", TRIE + "f = Trie", "'a' in f()", "exception"),
    ("an object that equals a value of its class", "import uuid\ndef f(): return uuid.UUID(int=1)",
     "f() == __import__('uuid').UUID(int=1)", "wrong answer"),
    ("changed arguments", "def f(x): x.sort()", "(x := [2, 1], f(x), x)[-1] == [1, 2]",
     "wrong answer"),
    ("changes after it was sent",
     "class Row(list):\n    def add(self, item): self.append(item)\nf = Row",
     "(r := f(), r.add(1), len(r))[-1] == 1", "wrong answer"),
    ("own exceptions", "class Bad(Exception): pass\ndef f(x): raise Bad", "said(f, Bad) == ''",
     "wrong answer"),
    ("own method of a builtin", "class Low(str):\n    def __eq__(self, other): return True\n"
     "    __hash__ = str.__hash__\nf = Low", "f('a') == 'A'", "wrong answer"),
    ("with blocks", "import contextlib\nf = contextlib.nullcontext", "entered(f)", "wrong answer"),
    ("coroutines", "async def f(): return 1", "awaited(f) == 1", "wrong answer"),
    ("threads", "import threading\ndef f():\n    t = threading.Thread(target=print)\n"
     "    t.start(); t.join(); return 1", "f() == 1", "exception"),
    ("processes", "import subprocess\ndef f(): return subprocess.run(['true']).returncode",
     "f() == 0", "exception"),
    ("sockets", "import socket\ndef f(): return socket.socket().close()", "f() is None",
     "exception"),
    ("locks on files", "import fcntl\ndef f():\n    with open('/tmp/x', 'w') as file:\n"
     "        fcntl.flock(file, 2)", "f() is None", "exception"),
    ("shared memory", "import mmap\ndef f(): return len(mmap.mmap(-1, 9))", "f() == 9",
     "exception"),
    ("large results", "def f(): return 'x' * 2**21", "len(f()) == 2**21", "reply too large"),
    ("deep results", "def f():\n    x = []\n    for _ in range(200): x = [x]\n    return x",
     "len(f()) == 1", "reply too large"),
]  # fmt: skip
SETUP = """
import asyncio, collections, datetime, decimal, itertools
def said(f, kind):
    try: f(1)
    except kind as error: return str(error)
def changed(items):
    items[0] = 3
    del items[1]
    return list(items)
def entered(f):
    with f(): return True
def awaited(f):
    return asyncio.run(f())
"""


def reason(source: str, test: str) -> str:
    return check_asserts(
        source, [f"assert {test}"], setup=SETUP, entry_point="f", timeout_s=20, memory_mib=1024
    ).reason


@pytest.fixture(scope="module")
def reasons() -> dict[tuple[str, str], str]:
    pairs = [*ACCEPTED, *((source, test) for _, source, test, _ in REFUSED)]
    with ThreadPoolExecutor(given_cores()) as pool:
        return dict(zip(pairs, pool.map(reason, *zip(*pairs, strict=True)), strict=True))


@pytest.mark.parametrize(("source", "test"), ACCEPTED)
def test_correct_code_passes(reasons: dict[tuple[str, str], str], source: str, test: str) -> None:
    names: dict[str, object] = {"__name__": "solution"}
    exec(source, names)  # noqa: S102 -- of the list above
    exec(f"{SETUP}\nassert {test}", {**names})  # noqa: S102 -- of the list above
    assert reasons[source, test] == "passed"


@pytest.mark.parametrize(("case", "source", "test", "why"), REFUSED)
def test_what_is_refused_is_on_the_page(
    reasons: dict[tuple[str, str], str], case: str, source: str, test: str, why: str
) -> None:
    assert reasons[source, test] == why
    assert f"| {case} | {why} |" in PAGE.read_text(encoding="utf-8")


def test_the_page_says_how_many_pass() -> None:
    said = f"and {len(ACCEPTED)} correct solutions of other kinds that pass."
    assert said in PAGE.read_text(encoding="utf-8")


def test_wrong_code_does_not_pass() -> None:
    """The same kinds of values, and answers that are not right."""
    for source, test in (
        (f"{DATES}def f(): return date(2020, 1, 1)", "f() == datetime.date(2020, 1, 2)"),
        (f"{COLLECTIONS}def f(): return deque([1])", "f() == [1]"),
        (ENUM + "def f(): return Color.RED", "f() == Color.BLUE"),
        (ENUM + "def f(): return Color.RED", "f() == 1"),
        (POINT + "def f(): return Point(1, 2)", "f() == Point(2, 1)"),
        (PAIR + "def f(): return Pair(1, 2)", "f() == (2, 1)"),
        (PRIMES + "f = primes", "next(f()) == 3"),
        ("def f(x): raise ValueError('a')", "said(f, ValueError) == 'b'"),
    ):
        assert reason(source, test) == "wrong answer", source
