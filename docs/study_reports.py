"""
Sphinx extension: the reports in ``studies/results`` as pages of the site.

It writes ``docs/reports/STUDY.md``, which git ignores, from ``studies/results/STUDY/report.md``. Other pages link to the
report; on the site such a link leads to the page.
"""

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "studies" / "results"
PAGES = DOCS / "reports"
LINK = re.compile(r"(\[[^\]]*\])\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def page_names() -> dict[Path, str]:
    """
    List the documents that become pages.

    :return: the names of their pages, by their paths
    """
    found = sorted(RESULTS.glob("*/report.md"))
    found += sorted(path for path in RESULTS.glob("*/*.md") if not (path.parent / "report.md").exists())
    return {path: f"{path.parent.name}.md" for path in found}


def lead_links(text: str, old: Path, new: Path) -> str:
    """
    Change the links of a page that moves, and those that would lead nowhere on the site.

    Links to reports lead to their pages, and other Markdown files outside the site are downloads. Folders lose their links.

    :param text: the page, as Markdown
    :param old: the folder that its links are relative to
    :param new: the folder that they shall be relative to
    :return: the page with the links changed
    """
    names = page_names()

    def lead(match: re.Match[str]) -> str:
        label, link, anchor = match.groups(default="")
        target = Path(os.path.normpath(old / link))
        if target.is_dir():
            return label[1:-1]
        target = PAGES / names[target] if target in names else target
        is_download = target.suffix == ".md" and not target.is_relative_to(DOCS)
        path = os.path.relpath(target, new).replace(os.sep, "/")
        return f"{label}({'path:' * is_download}{path}{anchor})"

    return LINK.sub(lead, text)


def write_pages(app: Sphinx) -> None:
    """
    Write the pages of all studies, where they have changed.

    :param app: Sphinx's application
    """
    PAGES.mkdir(exist_ok=True)
    names = page_names()
    for stale in {*PAGES.glob("*.md")} - {PAGES / name for name in names.values()}:
        stale.unlink()
    for path, name in names.items():
        text = lead_links(path.read_text(encoding="utf-8"), path.parent, PAGES)
        page = PAGES / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def lead_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """
    Lead a page's links to reports to the pages of the site.

    :param app: Sphinx's application
    :param docname: the page's name
    :param source: its text, in a list of one
    """
    folder = (DOCS / docname).parent
    source[0] = lead_links(source[0], folder, folder)


def lead_included(app: Sphinx, path: Path, docname: str, source: list[str]) -> None:
    """
    Change the links of a text that a page of this folder includes.

    :param app: Sphinx's application
    :param path: where the text is from, relative to this folder
    :param docname: the page's name
    :param source: the text, in a list of one
    """
    source[0] = lead_links(source[0], (DOCS / path).parent, DOCS)


def setup(app: Sphinx) -> dict[str, Any]:
    """
    Register the steps.

    :param app: Sphinx's application
    :return: what Sphinx asks of an extension
    """
    app.connect("builder-inited", write_pages)
    app.connect("source-read", lead_to_pages)
    app.connect("include-read", lead_included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
