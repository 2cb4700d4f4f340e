"""The pages name functions and files that there are."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
METHOD = ROOT / "docs" / "method.md"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("studies/results/*/findings.md"))]


def test_every_equation_names_a_function_that_there_is():
    functions = re.findall(r"\[`(\w+)\.(\w+)`\]\(#sb3_flowrl\.(\w+)\.(\w+)\)", METHOD.read_text())
    assert len(functions) > 10
    for module, function, *target in functions:
        assert [module, function] == target and callable(getattr(importlib.import_module(f"sb3_flowrl.{module}"), function))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", page.read_text())
    paths = [page.parent / (link or source) for link, source in links]
    assert paths or page.name == "findings.md"
    assert [path for path in paths if not path.exists()] == []


def test_citation_names_the_paper_and_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == (ROOT / "sb3_flowrl" / "version.txt").read_text().strip()
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2506.12811"
