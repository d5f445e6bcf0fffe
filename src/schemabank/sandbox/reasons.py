"""Why a check passed or did not: the closed list of reasons that a result may give.

They have a module of their own because the judge, which starts anew for every check, imports it.
"""

from typing import Final

PASSED: Final = "passed"
WRONG: Final = "wrong answer"
EXCEPTION: Final = "exception"
SYNTAX: Final = "syntax error"
MISSING: Final = "missing function"
TIMEOUT: Final = "timeout"
ENDED: Final = "ended early"
PROTOCOL: Final = "protocol"
TOO_LARGE: Final = "reply too large"

REASONS: Final = (
    PASSED,  # every test passed, or the program reached its end
    WRONG,  # a test failed, or could do nothing with what the code returned
    EXCEPTION,  # the code raised an exception that the test did not expect
    SYNTAX,  # the code does not compile
    MISSING,  # the code does not define what the tests call
    TIMEOUT,  # no result within the wall clock time
    ENDED,  # the process ended before it answered: an exit, a crash, a limit
    PROTOCOL,  # bytes that nobody asked for, or that are not a reply
    TOO_LARGE,  # a reply longer or deeper than any sensible result
)
