"""Programs that leave early, or return objects that equal everything."""

from hostile.parts import EQUAL, LIBC, WRONG

LEAVING_EARLY = {
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "sys.exit in the call": "import sys\ndef sort_numbers(numbers): sys.exit(0)",
    "os._exit in the call": "import os\ndef sort_numbers(numbers): os._exit(0)",
    "exit at exit": "import atexit, os, sys; atexit.register(os._exit, 0); sys.exit(0)",
    "SystemExit in a thread": "import threading, sys\nt = threading.Thread(target=sys.exit)\n"
    "t.start(); t.join()\n" + WRONG,
    "killed by its own hand": "import os; os.kill(os.getpid(), 9)",
    "another program": "import os; os.execv('/usr/bin/env', ['env', 'true'])",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "a BaseException": "raise BaseException",
    "an alarm": "import signal; signal.setitimer(0, 0.05)\nwhile True: pass",
    "a hook for exceptions": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n"
    "raise ValueError",
    "an audit hook": "import os, sys\nsys.addaudithook(lambda *a: os._exit(0))" + WRONG,
    "a finalizer": "import os\nclass Last:\n    def __del__(self): os._exit(0)\n"
    "def sort_numbers(numbers): return [Last()] and None",
    "a handler of a timer, while it is judged": "import os, signal\n"
    "signal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(0, 0.01, 0.01)\n"
    "def sort_numbers(numbers):\n    while True: pass",
    "an iterator": "import os\ndef sort_numbers(numbers):\n    yield os._exit(0)",
    "its own length": "import os\nclass Numbers:\n    def __len__(self): os._exit(0)\n"
    "    __iter__ = __len__\ndef sort_numbers(numbers):\n"
    "    return sorted(numbers) if numbers != [9, 8] else Numbers()",
    "an interrupt": "import _thread\n_thread.interrupt_main()\nwhile True: pass",
    "machine code": LIBC
    + """import mmap
code = mmap.mmap(-1, 4096, 0x22, 7)  # private; exit_group(0) on x86-64, elsewhere a crash
code.write(b"\\xb8\\xe7\\x00\\x00\\x00\\x31\\xff\\x0f\\x05")
place = ctypes.addressof(ctypes.c_char.from_buffer(code))
def sort_numbers(numbers): ctypes.CFUNCTYPE(None)(place)()
""",
    "bytes that are no bytecode": "def sort_numbers(numbers): return numbers\n"
    "code = sort_numbers.__code__\n"
    "sort_numbers.__code__ = code.replace(co_code=bytes([255, 0] * (len(code.co_code) // 2)))",
}
EQUAL_OBJECTS = {
    "equals everything": EQUAL.replace("BASE", "object")
    + "def sort_numbers(numbers): return Equal()",
    "a list's subclass": EQUAL.replace("BASE", "list")
    + "def sort_numbers(numbers): return Equal()",
    "integers' subclass": EQUAL.replace("BASE", "int")
    + "def sort_numbers(numbers): return [Equal(0) for _ in numbers]",
    "a string's subclass": EQUAL.replace("BASE", "str")
    + "def sort_numbers(numbers): return Equal()",
    "a tuple's subclass": EQUAL.replace("BASE", "tuple")
    + "def sort_numbers(numbers): return Equal()",
    "inside a list": EQUAL.replace("BASE", "object")
    + "def sort_numbers(numbers): return [Equal() for _ in numbers]",
    "poses as a list": EQUAL.replace("BASE", "object")
    + "    __class__ = list\ndef sort_numbers(numbers): return Equal()",
    "a class whose class lies": EQUAL.replace("BASE", "type")
    + "class Result(metaclass=Equal): pass\ndef sort_numbers(numbers): return Result",
    "lies about its items": EQUAL.replace("BASE", "object")
    + "    def __iter__(self): return iter([Equal()])\n    def __len__(self): return 3\n"
    "    def __getitem__(self, key): return Equal()\n    def __bool__(self): return True\n"
    "def sort_numbers(numbers): return Equal()",
    "the function equals everything": EQUAL.replace("BASE", "object")
    + "    def __call__(self, numbers): return self\nsort_numbers = Equal()",
    "replaces builtins": "import builtins\nbuiltins.sorted = builtins.list = builtins.len = "
    "lambda *a: None\nbuiltins.AssertionError = type('E', (Exception,), {})" + WRONG,
    "a float's subclass": EQUAL.replace("BASE", "float")
    + "def sort_numbers(numbers): return [Equal(0) for _ in numbers]",
    "a dict's subclass": EQUAL.replace("BASE", "dict")
    + "def sort_numbers(numbers): return Equal()",
    "a decimal's subclass": "from decimal import Decimal\n"
    + EQUAL.replace("BASE", "Decimal")
    + "def sort_numbers(numbers): return [Equal(0) for _ in numbers]",
    "a date's subclass": "from datetime import date\n"
    + EQUAL.replace("BASE", "date")
    + "def sort_numbers(numbers): return Equal(2000, 1, 1)",
    "a deque's subclass": "from collections import deque\n"
    + EQUAL.replace("BASE", "deque")
    + "def sort_numbers(numbers): return Equal()",
    "a member of an enumeration": "from enum import Enum\nclass Number(Enum):\n    ANY = 1\n"
    "    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
    "def sort_numbers(numbers): return Number.ANY",
    "a mock of anything": "from unittest.mock import ANY\ndef sort_numbers(numbers): return ANY",
    "a mock with all methods": "from unittest.mock import MagicMock\n"
    "sort_numbers = MagicMock()\nsort_numbers.return_value.__eq__.return_value = True\n"
    "sort_numbers.return_value.__len__.return_value = 2",
    "a weak proxy": "import weakref\n"
    + EQUAL.replace("BASE", "object")
    + "kept = Equal()\ndef sort_numbers(numbers): return weakref.proxy(kept)",
    "numbers that equal nothing, not even themselves": "def sort_numbers(numbers): "
    "return [float('nan')] * len(numbers)",
    "a coroutine": "async def sort_numbers(numbers): return sorted(numbers)",
    "raises whatever is asked": "class Angry:\n"
    "    def __getattribute__(self, name): raise OSError\n"
    "    def __eq__(self, other): raise OSError\n"
    "    __hash__ = __len__ = __iter__ = __bool__ = __str__ = __repr__ = __eq__\n"
    "def sort_numbers(numbers): return Angry()",
    "is another thing each time": "class Both(list):\n    seen = 0\n"
    "    def __iter__(self):\n        Both.seen += 1\n        return iter([Both.seen] * 3)\n"
    "def sort_numbers(numbers): return Both(numbers)",
    "a sum that always fits": "class Near:\n    def __sub__(self, other): return 0\n"
    "    __rsub__ = __add__ = __radd__ = __abs__ = __float__ = __index__ = __sub__\n"
    "    def __lt__(self, other): return True\n    __le__ = __gt__ = __ge__ = __lt__\n"
    "def sort_numbers(numbers): return [Near() for _ in numbers]",
    "a member that contains everything": "class Holds:\n"
    "    def __contains__(self, item): return True\n    def __len__(self): return 2\n"
    "def sort_numbers(numbers): return Holds()",
}
