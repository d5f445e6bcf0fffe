"""Programs that use up memory, disk, descriptors or time."""

from hostile.parts import ANSWER, LIBC, WRONG

EXHAUSTING = {
    "forks": "import os\nwhile True: os.fork()",
    "threads": "import threading, time\nwhile True: "
    "threading.Thread(target=time.sleep, args=(3600,)).start()",
    "memory": "kept = []\nwhile True: kept.append(bytearray(2**24))",
    "one huge block": "kept = bytearray(2**40)" + WRONG,
    "shared memory": LIBC + "WORKED = libc.shmget(0, ctypes.c_size_t(2**30), 0o1600) >= 0" + ANSWER,
    "memory files": "import os\nWORKED = os.memfd_create('x') >= 0" + ANSWER,
    "a file of 10 GiB": """
with open("/tmp/file", "wb") as file:
    for _ in range(10 * 1024): file.write(bytes(2**20))
WORKED = True
"""
    + ANSWER,
    "many large files": """
for number in range(10 * 1024):
    with open(f"/tmp/{number}", "wb") as file: file.write(bytes(2**20))
WORKED = True
"""
    + ANSWER,
    "device memory": """
with open("/dev/shm/file", "wb") as file: file.write(bytes(2**20))
WORKED = True
"""
    + ANSWER,
    "output without end": "while True: print('x' * 2**16)",
    "errors without end": "import sys\nwhile True: sys.stderr.write('x' * 2**16)",
    "a reply without end": "def sort_numbers(numbers):\n    while True: yield 1",
    "a huge reply": "def sort_numbers(numbers): return 'x' * 2**24",
    "a huge number": "def sort_numbers(numbers): return 1 << 2**26",
    "a bottomless list": "def sort_numbers(numbers):\n    numbers.append(numbers)\n"
    "    return numbers",
    "recursion": "def sort_numbers(numbers): return sort_numbers(numbers)",
    "recursion without a limit": "import sys; sys.setrecursionlimit(10**9)\n"
    "def sort_numbers(numbers): return sort_numbers(numbers)",
    "descriptors": "import os\nkept = [os.open('/dev/null', 0) for _ in range(10**6)]" + WRONG,
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n"
    "WORKED = True" + ANSWER,
    "time": "while True: pass",
    "nested brackets": "x = " + "(" * 5000 + ")" * 5000,
    "a regular expression": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')" + WRONG,
    "a sleep": "import time\ndef sort_numbers(numbers): time.sleep(3600)",
    "waits for input": "import sys\nwhile True: sys.stdin.read(1)",
    "waits for itself": "import os\nos.read(os.pipe()[0], 1)" + WRONG,
    "a lock taken twice": "import threading\nlock = threading.Lock()\n"
    "lock.acquire(); lock.acquire()",
    "sorts what has no end": "import itertools\n"
    "def sort_numbers(numbers): return sorted(itertools.count())",
    "a power": "def sort_numbers(numbers): return 7 ** 7 ** 9",
    "digits": "import sys; sys.set_int_max_str_digits(0)\n"
    "def sort_numbers(numbers): return str(3 ** 10**7)",
    "a factorial": "import math\ndef sort_numbers(numbers): return math.factorial(10**7)",
    "all orders": "import itertools\n"
    "def sort_numbers(numbers): return list(itertools.permutations(range(12)))",
    "a wide format": "def sort_numbers(numbers): return f'{0:{2**31 - 1}}'",
    "a bomb of gzip": "import gzip\nbomb = gzip.compress(bytes(2**26)) * 64\n"
    "def sort_numbers(numbers): return gzip.decompress(bomb)",
    "a bomb of bzip2": "import bz2\nbomb = bz2.compress(bytes(2**23)) * 512\n"
    "def sort_numbers(numbers): return bz2.decompress(bomb)",
    "a bomb of lzma": "import lzma\nbomb = lzma.compress(bytes(2**24)) * 256\n"
    "def sort_numbers(numbers): return lzma.decompress(bomb)",
    "a list that doubles": "def sort_numbers(numbers):\n    found = []\n"
    "    for _ in range(60): found = [found, found]\n    return found",
    "a pickle that doubles": "import pickle\n"
    "bomb = b'(lp0\\n' + b''.join(b'(lp%d\\ng%d\\nag%d\\na' % (n, n - 1, n - 1) "
    "for n in range(1, 40)) + b'.'\ndef sort_numbers(numbers): return str(pickle.loads(bomb))",
    "a dictionary whose keys collide": "class Same:\n    def __hash__(self): return 0\n"
    "kept = {Same(): n for n in range(10**6)}" + WRONG,
    "objects that come back": "class Hydra:\n"
    "    def __del__(self): kept.append((Hydra(), Hydra()))\n"
    "kept = []\nwhile True: Hydra(); kept = kept[-9:]",
    "a sum of a million terms": "exec('x = ' + '+'.join(['1'] * 10**6))" + WRONG,
    "deep JSON": "import json\ndef sort_numbers(numbers): return json.loads('[' * 10**6)",
    "memory of the C library": LIBC + "libc.malloc.restype = ctypes.c_void_p\nwhile True:\n"
    "    found = libc.malloc(ctypes.c_size_t(2**24))\n    ctypes.memset(found, 1, 2**24)",
    "memory past the end of the heap": LIBC + "libc.sbrk.restype = ctypes.c_void_p\nwhile True:\n"
    "    found = libc.sbrk(2**24)\n    if found == 2**64 - 1: raise MemoryError\n"
    "    ctypes.memset(found, 1, 2**24)",
    "the stack": LIBC + "call = ctypes.CFUNCTYPE(None)(lambda: call())\ncall()" + WRONG,
    "names that nobody has": """
import os, time
ends = time.monotonic() + 1
while time.monotonic() < ends:
    for n in range(1000):
        try: os.stat(f"/usr/{time.monotonic_ns()}{n}" + "x" * 200)
        except OSError: pass
"""
    + WRONG,
    "every file there is": """
import os
for folder, _, names in os.walk("/usr"):
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file: file.read()
        except (OSError, MemoryError): pass
"""
    + WRONG,
    "exceptions in exceptions": "error = None\nwhile True:\n    try: raise ValueError from error\n"
    "    except ValueError as caught: error = caught",
}
# A long range is a short reply; what the tests then make of it is made in the judge.
UNFOLDED_ASSERTS = ["assert list(sort_numbers([3, 1, 2])) == [1, 2, 3]"]
UNFOLDED = {
    "a long range": "def sort_numbers(numbers): return range(3 * 10**7)",
    "a long range and memory of its own": "def sort_numbers(numbers):\n"
    "    global kept\n    kept = b'x' * (400 * 2**20)\n    return range(3 * 10**7)",
}
