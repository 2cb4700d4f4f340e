"""The programs of docs/integrations.md, each where its tool is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"<!-- needs: (.+?) -->\n```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("modules, program", PROGRAMS, ids=[modules for modules, _ in PROGRAMS])
def test_a_program_of_the_page_runs(tmp_path, modules, program):
    for module in modules.split():
        pytest.importorskip(module)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
