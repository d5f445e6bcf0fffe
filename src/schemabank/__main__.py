"""``python -m schemabank`` is the command ``schemabank``."""

from schemabank.cli import main

if __name__ == "__main__":
    main()
