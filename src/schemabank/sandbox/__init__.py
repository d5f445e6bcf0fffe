"""Runs code that a model wrote and says whether it does what it should, without trusting it.

The code runs inside bubblewrap in a process of its own; the tests run elsewhere and only send
calls and receive plain values. What that holds against is in ``docs/sandbox.md``.
"""

from schemabank.sandbox.grade import check_asserts, check_function, run_program
from schemabank.sandbox.isolation import require_isolation
from schemabank.sandbox.reasons import REASONS
from schemabank.sandbox.result import CheckResult, SandboxError

__all__ = [
    "REASONS",
    "CheckResult",
    "SandboxError",
    "check_asserts",
    "check_function",
    "require_isolation",
    "run_program",
]
