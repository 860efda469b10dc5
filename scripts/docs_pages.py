"""What of the docs' site lies outside docs/, or must hold for each of its pages: hooks of MkDocs.

Files of the project's root are pages too: README.md is the first one. Links between them are written as they
work in the repository, and are made here into those that work on the site. A page that loads anything from
elsewhere fails.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = {
    "README.md": "index.md",
    "SECURITY.md": "SECURITY.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "contrib/README.md": "contrib/README.md",
}
FILES: Final = ("config.example.yaml", "LICENSE")
IN_DOCS: Final = re.compile(r'(\]\((?:\.\./)?|src(?:set)?=")docs/')
LOADED: Final = re.compile(
    r'<(?:script|img|source|iframe)\b[^>]*\bsrc(?:set)?="(?:https?:)?//[^"]*"|<link\b[^>]*"https?://[^>]*>'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies in the project's root."""
    contrib = [f"contrib/{each.name}" for each in (ROOT / "contrib").iterdir() if each.is_file()]
    for source, name in ({each: each for each in (*FILES, *contrib)} | PAGES).items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead where the site has what they name."""
    if page.file.generated_by is None:  # in docs/
        up = "../" * page.file.src_uri.count("/")
        return markdown.replace(f"]({up}../README.md", f"]({up}index.md").replace(f"]({up}../", f"]({up}")
    return IN_DOCS.sub(r"\1", markdown).replace("](README.md", "](index.md")


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """See that nothing is loaded from elsewhere."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output
