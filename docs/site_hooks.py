"""What the documentation site needs beside mkdocs.yml: a front page, formulas, and docstrings' references.

The site loads nothing from other servers: formulas are MathML, which browsers draw themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
FRONT_PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files of the repository, where the forges look for them."""
ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([\w.]+)`")


def on_files(files: Files, config: Any) -> Files:
    """Take in the pages that lie outside of docs/, and the notebooks."""
    for name, source in FRONT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace('"docs/', '"').replace("](docs/", "](")
        for page, at_root in FRONT_PAGES.items():
            text = text.replace(f"]({at_root})", f"]({page})")
        text = text.replace(".ipynb)", ".md)")
        files.append(File.generated(config, name, content=text))
    for notebook in sorted((ROOT / "docs").rglob("*.ipynb")):
        page, _ = MarkdownExporter().from_filename(str(notebook))  # with what it last printed; nothing is run
        name = notebook.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=page))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Turn what arithmatex has marked as LaTeX into MathML."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda found: convert(
            html.unescape(found[2]).strip(), display="block" if found[1] == "div" else "inline"
        ),
        content,
        flags=re.DOTALL,
    )


class References(griffe.Extension):
    """Sphinx's roles and headings in docstrings, in Markdown."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Make ``:func:`name``` a piece of code, and the heading of references a bold word."""
        if not obj.is_alias and obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^References\n-+$", "**References**\n", text, flags=re.MULTILINE)
