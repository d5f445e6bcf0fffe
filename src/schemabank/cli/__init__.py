"""The command line: every command reads settings, calls one library function and prints.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 failed, 2 bad input,
3 some runs of several failed, or an adapter is not what was trained or cannot be checked,
130 interrupted. `program` lists the commands. What takes long to import, as torch does, is imported
inside them.
"""

from schemabank.cli.program import app as app
from schemabank.cli.program import main

__all__ = ["main"]
