"""What a check says: a result about the code, or an exception about the machinery.

The two never mix: code that is wrong, hostile or too slow gets a result, and a sandbox that could
not do its work raises, so that no model is marked down for it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        passed: whether the code passed.
        reason: one of :data:`schemabank.sandbox.reasons.REASONS`; ``"passed"`` if and only if it
            passed.
    """

    passed: bool
    reason: str


class SandboxError(RuntimeError):
    """The sandbox or the tests failed, not the code under test: there is no result."""
