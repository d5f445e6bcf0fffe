"""Programs that walk to what judges them, or change it."""

from hostile.parts import FRAME, WRONG

WALKING = {
    "frames for what is expected": """
import sys
def sort_numbers(numbers):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name in ("expected", "want", "result", "gold"):
                if name in scope: return scope[name]
        frame = frame.f_back
""",
    "frames to the judge's nonce": """
import sys
frame, nonces = sys._getframe(), []
while frame:
    nonces += [v for v in frame.f_locals.values() if isinstance(v, bytes) and len(v) == 16]
    frame = frame.f_back
"""
    + FRAME
    + "for nonce in nonces: everywhere(frame(True, nonce) * 9)"
    + WRONG,
    "garbage collector for check": """
import gc, types
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and f.__name__ == "check":
        f.__code__ = (lambda candidate: None).__code__
"""
    + WRONG,
    "garbage collector for lists": """
import gc
def sort_numbers(numbers):
    for found in gc.get_objects():
        if type(found) is list and found != numbers and found == sorted(numbers): return found
""",
    "swaps the guest's encoder": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
class Any:
    def __eq__(self, other): return True
wire.encode = lambda value, *rest: ["Any"]
wire.PLAIN.clear(); wire.SCALARS.clear()
"""
    + WRONG,
    "swaps the guest's answers": """
import sys
sys.modules["schemabank.sandbox.guest"].GuestServer.answer = lambda self, request: b'["passed"]'
"""
    + WRONG,
    "jumps to the end of the program": """
import sys
def jump(frame, event, arg):
    try: frame.f_lineno = max(line for *_, line in frame.f_code.co_lines() if line)
    except ValueError: pass
    return jump
sys._getframe().f_trace = jump
sys.settrace(jump)
"""
    + WRONG,
    "traces away assertions": """
import sys
def skip(frame, event, arg):
    if event == "exception": frame.f_lineno += 1
    return skip
sys.settrace(skip)
"""
    + WRONG,
    "profiles away results": """
import sys
def swap(frame, event, arg):
    if event == "return":
        for name in ("value", "result", "expected"): frame.f_locals[name] = [1, 2, 3]
sys.setprofile(swap)
"""
    + WRONG,
    "changes its result later": """
import signal
kept = []
def later(*_): kept[:] = [1, 2, 3]
signal.signal(signal.SIGALRM, later)
signal.setitimer(0, 0.001, 0.001)
def sort_numbers(numbers): return kept
""",
    "empties its argument": "def sort_numbers(numbers):\n    numbers.clear()\n    return numbers",
}
TAKING_OVER = {
    "rewrites the guest": """
import sys
sys.modules["schemabank.sandbox.guest"].GuestServer.do_run = lambda self, text: True
"""
    + WRONG,
    "speaks the protocol": FRAME
    + """
pipes = []
for fd in range(3, 256):
    try: os.fstat(fd); pipes.append(fd)
    except OSError: pass
requests, replies = pipes[0], pipes[1]
while True:
    # The nonce of the request that runs this statement is still in the pipe.
    os.write(replies, frame(value if "value" in vars() else True, os.read(requests, 16)))
    length, = struct.unpack(">I", os.read(requests, 4))
    operation = json.loads(os.read(requests, length))[0]
    value = {"run": True, "find": ["dict", "sort_numbers", ["object", 0]]}.get(operation)
"""
    + WRONG,
    "compiles without assertions": """
import builtins
real = builtins.compile
builtins.compile = lambda text, *a, **k: real(text.replace("assert sort", "0 and sort"), *a, **k)
"""
    + WRONG,
    "runs no assertion": """
import builtins
real = builtins.exec
builtins.exec = lambda code, *a: real(code, *a) if "sort_numbers" not in code.co_names else None
"""
    + WRONG,
    "swallows what an assertion raises": """
import sys
server = sys.modules["schemabank.sandbox.guest"].GuestServer
run = server.do_run
def tolerant(self, text):
    try: return run(self, text)
    except AssertionError:
        if "sort_numbers" in text: return True
        raise
server.do_run = tolerant
"""
    + WRONG,
}
PATCHING = {
    "unittest's assertions": """
import unittest
for name in dir(unittest.TestCase):
    if name.startswith("assert"): setattr(unittest.TestCase, name, lambda *a, **k: None)
"""
    + WRONG,
    "the methods of lists": """
import gc
methods = gc.get_referents(list.__dict__)[0]
methods["__eq__"] = methods["__len__"] = lambda *a: True
"""
    + WRONG,
    "how lists are compared, in memory": """
import ctypes
always = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_int)(
    lambda *a: True)
fields = (ctypes.c_void_p * 60).from_address(id(list))
class Other(list):
    def __eq__(self, other): return True
own = (ctypes.c_void_p * 60).from_address(id(Other))
for n in range(3, 26): fields[n] = own[n] if fields[n] and n in (24, 25) else fields[n]
"""
    + WRONG,
    "small integers, in memory": """
import ctypes
for n in (1, 2, 3): ctypes.memmove(id(n) + 24, id(7) + 24, 4)
"""
    + WRONG,
    "a module that tests import": """
import sys, types
for name in ("math", "copy", "random", "typing", "unittest", "schemabank.sandbox.judge"):
    fake = types.ModuleType(name)
    fake.fabs = fake.isclose = fake.assertEqual = lambda *a, **k: 0
    sys.modules[name] = fake
"""
    + WRONG,
    "how modules are found": """
import importlib.abc, importlib.machinery, sys
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module): module.__getattr__ = lambda name: lambda *a, **k: True
sys.meta_path.insert(0, Finder())
"""
    + WRONG,
    "modules in the folder of the tests": """
import sys
for name in ("json", "ast", "random", "sitecustomize", "tests"):
    with open(f"/tmp/{name}.py", "w") as file: file.write("raise SystemExit(0)")
sys.path.insert(0, "/tmp")
"""
    + WRONG,
    "the interpreter's own optimisation": """
import ctypes, sys
ctypes.c_int.in_dll(ctypes.pythonapi, "Py_OptimizeFlag").value = 2
sys.flags = type("flags", (), {"optimize": 2})
"""
    + WRONG,
    "the guest, by the garbage collector": """
import gc
for found in gc.get_objects():
    if type(found).__name__ == "GuestServer": found.do_call = lambda *a: [1, 2, 3]
"""
    + WRONG,
    "exceptions that are caught": """
import builtins
builtins.Exception = builtins.BaseException = builtins.AssertionError = ()
"""
    + WRONG,
    "what happens at the end": """
import atexit, sys, threading, weakref
class Printer:
    def __del__(self): print("passed")
kept = Printer()
weakref.finalize(kept, print, "passed")
atexit.register(print, "passed")
threading._register_atexit(print, "passed")
"""
    + WRONG,
}
