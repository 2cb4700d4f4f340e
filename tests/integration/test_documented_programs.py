"""The Python programs in README and docs run. Those of docs/integrations.md, which need tools, have a file of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import paper_tasks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    page.stem: "\n".join(blocks)
    for page in PAGES
    if (blocks := re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    and page.stem != "integrations"
}
#: What a page takes for granted.
GIVEN = {
    "it_does_not_learn": "import gymnasium; env = gymnasium.make('Pendulum-v1')\n",
    "sharing_policies": (
        "from sb3_flowrl import FlowRL; model = FlowRL('MlpPolicy', 'Pendulum-v1')\n"
        "from sb3_flowrl.export import export_onnx; export_onnx(model, 'policy.onnx')\n"
    ),
}
#: What a page promises to leave behind.
FILES = {
    "README": ["flowrl-halfcheetah.zip"],
    "checkpoints": ["run"],
    "environments": ["videos/rl-video-episode-0.mp4"],
    "first_run": ["model.zip", "buffer.pkl"],
    "sharing_policies": ["policy.safetensors"],
}
NEEDS = {"environments": "dm_control", "sharing_policies": "onnxruntime"}


def test_the_programs_are_found():
    assert {*GIVEN, *FILES, *NEEDS, "agents", "arguments", "diagnostics", "index", "speed"} == PROGRAMS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("page", PROGRAMS)
def test_the_programs_of_a_page_run(page, tmp_path):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    if "HalfCheetah" in PROGRAMS[page] and not paper_tasks.installed("mujoco"):
        pytest.skip("needs MuJoCo")
    program, n_trainings = re.subn(r"(?<=learn\()(1e6|1_000_000|100_000)", "300", PROGRAMS[page])
    assert n_trainings == PROGRAMS[page].count(".learn(")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GIVEN.get(page, "") + program]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in FILES.get(page, []):
        assert (tmp_path / name).exists(), name
