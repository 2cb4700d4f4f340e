"""
Turn a Markdown page into one self-contained HTML file with its images embedded.
"""

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
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
    Convert a page to HTML.

    :param markdown: the page
    :param title: its title, for the browser
    :param folder: the folder that the page's relative paths to images start from
    :return: the HTML file's contents; links other than those to images still lead to files beside it
    """
    body = MarkdownIt("commonmark").enable("table").render(markdown)

    def inline(match: re.Match) -> str:
        path = folder / match[1]
        image = base64.b64encode(path.read_bytes()).decode()
        return f'src="data:{MEDIA_TYPES[path.suffix]};base64,{image}"'

    return TEMPLATE.format(title=title, body=re.sub(r'src="([^":]+\.(?:svg|png))"', inline, body))
