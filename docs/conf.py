"""
Configuration of the documentation site. ``make docs`` builds it into ``build/docs``.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # this folder's extensions, and the package of this checkout

project = "sb3-flowrl"
author = "sb3-flowrl contributors"
copyright = author
version = release = (DOCS.parent / "sb3_flowrl" / "version.txt").read_text(encoding="utf-8").strip()

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "argument_tables",
    "study_reports",
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# So that the extra `docs` is enough
autodoc_mock_imports = ["optuna"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"


def skip_field_numbers(app, what, name, documented, skip, options):
    """Skip the fields of named tuples, which the docstring of the class describes."""
    return True if str(getattr(documented, "__doc__", "")).startswith("Alias for field number") else None


def setup(app):
    """Register what this file adds to autodoc."""
    app.connect("autodoc-skip-member", skip_field_numbers)


html_theme = "furo"
html_title = f"sb3-flowrl {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
