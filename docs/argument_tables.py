"""
Sphinx extension: the directive ``argument-table``, which tables some arguments of a class with their defaults.

The descriptions are those of the class's docstring, so that each of them is written once.
"""

import importlib
import inspect
import re
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def describe_arguments(documented: type) -> dict[str, str]:
    """
    Read the descriptions of a class's arguments from its docstring.

    :param documented: a class with ``:param name:`` fields in its docstring
    :return: the descriptions, as reStructuredText on one line, by the arguments' names
    """
    fields = re.findall(r"^:param (\w+):(.*?)(?=^:|\Z)", inspect.getdoc(documented) or "", re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in fields}


class ArgumentTable(SphinxDirective):
    """Table the arguments that the content names."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"class": directives.class_option}

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        documented = getattr(importlib.import_module(module), name)
        descriptions, parameters = describe_arguments(documented), inspect.signature(documented).parameters
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 20 15 65", "   :class: arguments", ""]
        rows = [("argument", "default", "what it does")]
        for argument in " ".join(self.content).split():
            if argument not in descriptions:
                raise self.error(f"{self.arguments[0]} describes no argument {argument}")
            default = parameters[argument].default
            shown = "required" if default is inspect.Parameter.empty else f"``{getattr(default, '__name__', repr(default))}``"
            rows.append((f"``{argument}``", shown, descriptions[argument]))
        for first, second, third in rows:
            lines += [f"   * - {first}", f"     - {second}", f"     - {third}"]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """
    Register the directive.

    :param app: Sphinx's application
    :return: what Sphinx asks of an extension
    """
    app.add_directive("argument-table", ArgumentTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
