"""The version of this package, from ``version.txt``, which ``setup.py`` reads as well."""

import os

with open(os.path.join(os.path.dirname(__file__), "version.txt"), encoding="utf-8") as _file:
    __version__ = _file.read().strip()
