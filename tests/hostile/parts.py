"""What hostile programs are put together from, and the tests that they are put to.

Each is a completion for ``sort_numbers(numbers)``. ``{outside}`` is a folder of the caller's that
holds ``secret.txt``, ``{tests}`` the folder of the tests, ``{port}`` a port on which the caller
listens, ``{socket}`` the name of its abstract socket, and ``{homes}`` a list of the home folders of
root and of the caller.
"""

SORT_ASSERTS = [
    "assert sort_numbers([3, 1, 2]) == [1, 2, 3]",
    "assert sort_numbers([2, 2]) == [2, 2]",
    "assert len(sort_numbers([9, 8])) == 2",
    "assert sort_numbers([]) == []",
]
SORT_TEST = "def check(candidate):\n" + "\n".join(
    f"    {line}".replace("sort_numbers", "candidate") for line in SORT_ASSERTS
)

# Once a trick has worked, the program answers rightly, so that a hole shows as a pass.
ANSWER = "\ndef sort_numbers(numbers): return sorted(numbers) if WORKED else None\n"
WRONG = "\ndef sort_numbers(numbers): return None\n"
# A frame of the protocol, with a nonce that is a guess.
FRAME = """
import json, os, struct
def frame(value, nonce=bytes(16)):
    data = json.dumps(["value", value]).encode()
    return struct.pack(">I", len(data)) + nonce + data
def everywhere(data):
    for fd in range(256):
        try: os.write(fd, data)
        except OSError: pass
"""
EQUAL = """
class Equal(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
"""
LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
