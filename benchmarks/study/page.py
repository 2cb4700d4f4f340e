"""
A Markdown page as one HTML file that needs no other: its images are in it.
"""

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2, h3 {{ line-height: 1.2; margin-top: 2em; }}
h1 {{ margin-top: 0; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85em; margin: 1em 0; }}
th, td {{ padding: 0.3em 0.7em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }}
thead th {{ border-bottom: 2px solid #888; }}
tbody tr:hover {{ background: #f5f5f5; }}
td {{ font-variant-numeric: tabular-nums; }}
code {{ font-size: 0.9em; background: #f3f3f3; padding: 0.1em 0.3em; border-radius: 3px; overflow-wrap: anywhere; }}
img {{ max-width: 100%; display: block; margin: 1em auto; }}
a {{ color: #0645ad; text-decoration: none; }}
a:hover {{ text-decoration: underline; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def to_html(markdown: str, title: str, folder: Path) -> str:
    """
    :param markdown: the page
    :param title: its title, for the browser
    :param folder: where the page's relative paths to SVG images begin
    :return: the HTML file's contents; links other than to images still lead to files beside it
    """
    body = MarkdownIt("commonmark").enable("table").render(markdown)

    def inline(match: re.Match) -> str:
        image = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{image}"'

    return TEMPLATE.format(title=title, body=re.sub(r'src="([^":]+\.svg)"', inline, body))
