"""What mkdocs cannot do by itself: pages that lie outside of docs/, and links to them.

The pages are written for people who read them in the tree, on a code host or in an editor. So they
link to files of the tree, which a site does not have. Here README.md becomes the site's first page,
a file of text that some page links to becomes a page of its own, and a link to a folder becomes
its words. mkdocs then checks every link. It calls the functions that are named ``on_...``.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = Path(__file__).parent
# Files outside of docs/ that have a place in the site's navigation.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docs/notebooks/first_adapter.ipynb": "notebooks/first_adapter.md",
}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml"}
FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^()\s]+)\)")
COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
OTHER_HOST = re.compile(r"[a-z]+:")
ROLE = re.compile(r":(?:meth|func|class|attr|mod|data):(?=<code>)")
LARGEST = 100_000  # characters of a file that becomes a page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/: those with a place, and what pages link to."""
    own = [ROOT / name for name in PLACES]
    waiting = [*own, *(Path(f.abs_src_path) for f in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.is_relative_to(DOCS) or path in own:
            files.append(File.generated(config, place(path), content=page_text(path)))
        if path.suffix == ".md":
            found = set(linked_files(path)) - seen
            seen |= found
            waiting += found
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Turn links into the tree into links of the site."""
    own = next((ROOT / name for name, at in PLACES.items() if at == page.file.src_uri), None)
    if own is None:
        inside = PurePosixPath(page.file.src_uri)
        own = ROOT / inside.relative_to("tree") if inside.parts[0] == "tree" else DOCS / inside
        own = own if own.is_file() else own.with_suffix("")
    if own.suffix not in {".md", ".ipynb"}:
        return markdown
    return outside_of_code(COMMENT.sub("\n", markdown), own, page.file.src_uri, files)


def on_page_content(html: str, **_: object) -> str:
    """Leave out the roles of Sphinx, which docstrings put before the names of their relatives."""
    return ROLE.sub("", html)


def outside_of_code(text: str, own: Path, uri: str, files: Files) -> str:
    """The text with its links turned, those in blocks of code left alone."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [turned(text[end : fence.start()], own, uri, files), fence[0]]
        end = fence.end()
    return "".join([*parts, turned(text[end:], own, uri, files)])


def turned(text: str, own: Path, uri: str, files: Files) -> str:
    """The text with its links turned."""

    def one(link: re.Match[str]) -> str:
        mark, words, to = link.groups()
        name, _, heading = to.partition("#")
        if mark or not name or OTHER_HOST.match(to):
            return link[0]
        path = target(own, name)
        if path.is_dir() and not path.is_relative_to(DOCS):
            return words
        at = place(path)
        if files.get_file_from_path(at) is None:
            return link[0]  # mkdocs says that it leads nowhere
        inside = os.path.relpath(at, PurePosixPath(uri).parent)
        return f"[{words}]({inside}{'#' * bool(heading)}{heading})"

    return LINK.sub(one, text)


def linked_files(path: Path) -> Iterator[Path]:
    """Files outside of docs/ to which a page links."""
    for _, _, to in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        found = target(path, to.partition("#")[0])
        outside = found.is_relative_to(ROOT) and not found.is_relative_to(DOCS)
        if outside and found.is_file() and found.stat().st_size <= LARGEST:
            yield found


def target(own: Path, name: str) -> Path:
    """The file to which a page's link leads; of a folder, its README.md if there is one."""
    path = Path(os.path.normpath(own.parent / name))
    return path / "README.md" if (path / "README.md").is_file() else path


def place(path: Path) -> str:
    """Where a file of the tree is in the site."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
    if name in PLACES:
        return PLACES[name]
    if path.is_relative_to(DOCS):
        return str(path.relative_to(DOCS))
    return f"tree/{name}" if path.suffix == ".md" else f"tree/{name}.md"


def page_text(path: Path) -> str:
    """A file as a page: Markdown as it is, a notebook's cells, all else as a block of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n\n".join(cell_text(cell["cell_type"], "".join(cell["source"])) for cell in cells)
    fence = "`" * (3 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    name = path.relative_to(ROOT)
    return (
        f"# {name.name}\n\n`{name}`\n\n{fence}{LANGUAGES.get(path.suffix, '')}\n{text}\n{fence}\n"
    )


def cell_text(kind: str, source: str) -> str:
    """A notebook's cell as Markdown."""
    return f"```python\n{source}\n```" if kind == "code" else source
