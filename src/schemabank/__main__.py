"""``python -m schemabank`` is the command ``schemabank``."""

from schemabank.cli import main

main()
