"""Programs that forge the protocol."""

from hostile.parts import FRAME, WRONG

FORGING = {
    "prints": "print('passed', flush=True); print('OK')" + WRONG,
    "writes to every descriptor": FRAME + "everywhere(b'passed')" + WRONG,
    "poses as the judge": FRAME + "everywhere(b'R'); everywhere(b'passed')" + WRONG,
    "answers ahead": FRAME + "everywhere(frame(True) + frame({}) * 9)" + WRONG,
    "answers ahead in the call": FRAME
    + "def sort_numbers(numbers):\n    everywhere(frame(['list', *sorted(numbers)]))",
    "answers twice": FRAME
    + """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
once = wire.write_all
def twice(fd, data): once(fd, data); once(fd, data)
wire.write_all = twice
"""
    + WRONG,
    "says a word after the right answer": FRAME
    + "def sort_numbers(numbers):\n    if not numbers: everywhere(b'x')\n"
    "    return sorted(numbers)",
    "claims a reply of 4 GiB": FRAME + "everywhere(b'\\xff' * 4 + bytes(16))" + WRONG,
    "reads the nonce away": """
import os
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        os.read(fd, 65536)
    except OSError: pass
"""
    + WRONG,
    "closes the pipe": "import os; os.closerange(0, 256)" + WRONG,
    "replies with another kind of bytes": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b"[[[[" * 9
"""
    + WRONG,
    "replays an old reply": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
once, sent = wire.write_all, []
def again(fd, data):
    sent.append(data)
    once(fd, sent[0])
wire.write_all = again
"""
    + WRONG,
    "claims objects that it has not": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b'["value",["object",12345]]'
"""
    + WRONG,
    "claims an object by name": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b'["value",["object","sorted"]]'
"""
    + WRONG,
    "raises what there is not": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b'["raised","__import__"]'
"""
    + WRONG,
    "half a reply": """
import os, sys, time
wire = sys.modules["schemabank.sandbox.wire"]
def half(fd, data):
    os.write(fd, data[:-1])
    time.sleep(3600)
wire.write_all = half
"""
    + WRONG,
    "a byte at a time": """
import os, sys, time
wire = sys.modules["schemabank.sandbox.wire"]
def drip(fd, data):
    for n in range(len(data)):
        os.write(fd, data[n:n + 1])
        time.sleep(0.2)
wire.write_all = drip
"""
    + WRONG,
    "crosses the pipes": "import os\n"
    "fds = [fd for fd in range(3, 32) if os.path.exists(f'/dev/fd/{fd}') or fd < 8]\n"
    "for a, b in zip(fds, fds[::-1]):\n    try: os.dup2(a, b)\n    except OSError: pass" + WRONG,
    "pipes that do not wait": "import os\nfor fd in range(3, 32):\n"
    "    try: os.set_blocking(fd, False)\n    except OSError: pass" + WRONG,
    "reads what the judge will send": """
import fcntl, os, struct
def sort_numbers(numbers):
    for fd in range(3, 32):
        try: waiting, = struct.unpack("i", fcntl.ioctl(fd, 0x541B, bytes(4)))
        except OSError: continue
        if waiting: return os.read(fd, waiting)
""",
    "objects in objects without end": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b'["value",["dict",["set",["object",0]],1]]'
"""
    + WRONG,
    "hashes that are objects without end": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b'["value",["set",["object",0]]]'
"""
    + WRONG,
    "arguments of an exception without end": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b'["raised","ValueError",["tuple",["set",["object",0]]]]'
"""
    + WRONG,
    "a name whose hash is another each time": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
said = iter([b'true', b'["dict",["object",0],1]', b'5', b'"x"', b'[]'])
wire.to_json = lambda value: b'["value",' + next(said, b'"x"') + b']'
"""
    + WRONG,
    "a number of a billion digits": "from decimal import Decimal\n"
    "def sort_numbers(numbers): return Decimal('1e999999999')",
    "a range without end": "def sort_numbers(numbers): return range(10**30)",
    "keys that collide": "def sort_numbers(numbers):\n"
    "    return {n * (2**61 - 1): None for n in range(1, 12000)}",
    "text that is no text": "def sort_numbers(numbers): return '\\udc80\\0' * 1000",
}
