"""What pyproject.toml cannot say: the page of the package, README.md without links into this tree.

An index of packages shows that page by itself, where such a link leads nowhere, nor one to a
heading. Their words stay, and the files lie in the source distribution.
"""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md")
INTO_THE_TREE = re.compile(r"\[([^][]+)\]\((?!https?://)[^()\s]+\)")

setup(
    long_description=INTO_THE_TREE.sub(r"\1", README.read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
