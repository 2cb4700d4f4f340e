"""The examples run, and show what they say."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch as th

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run_script(path: Path, *arguments: str) -> str:
    result = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def toy_bandit(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import toy_bandit

    return toy_bandit


def test_toy_bandit_guidance_gathers_the_flow_where_the_behavior_did_better(toy_bandit):
    th.manual_seed(0)
    behavior = toy_bandit.share_better(toy_bandit.sample_behavior(5_000))
    guided = toy_bandit.share_better(toy_bandit.Flow(toy_bandit.toy_guidance).train(400, batch_size=256).paths(1_000)[-1])
    unguided = toy_bandit.share_better(toy_bandit.Flow(toy_bandit.no_guidance).train(400, batch_size=256).paths(1_000)[-1])
    assert 0.15 < behavior < 0.3
    assert guided > 0.9
    assert unguided < 0.4


def test_toy_bandit_draws_its_picture(tmp_path):
    picture = tmp_path / "new" / "toy.png"
    output = run_script(EXAMPLES / "toy_bandit.py", "--updates", "2", "--output", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in output


def test_train_mujoco(tmp_path):
    pytest.importorskip("mujoco")
    arguments = ["--env", "InvertedPendulum-v5", "--timesteps", "1e2", "--learning-starts", "90", "--folder", str(tmp_path)]
    output = run_script(EXAMPLES / "train_mujoco.py", *arguments)
    assert "InvertedPendulum-v5, mean return of 5 episodes: " in output
    assert (tmp_path / "flowrl-InvertedPendulum-v5.zip").exists()
    # a video where something can render it, and else the reason why not
    video = tmp_path / "video" / "flowrl-episode-0.mp4"
    assert ("Video: " in output and video.exists()) or "No video, because nothing could" in output


def code_of(notebook: Path) -> list[str]:
    """The code of a notebook's cells, without IPython's own commands."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return ["".join(line for line in cell["source"] if not line.startswith("%")) for cell in cells]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    for package in ("matplotlib", "moviepy", "pygame", "safetensors", "tensorboard", "tqdm", "rich"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(Video=lambda path, embed: Path(path)))
    names: dict = {}
    for code in code_of(EXAMPLES / "first_hour.ipynb"):
        exec(code, names)
    assert names["model"].num_timesteps == 5_000 and "Loaded at step 4000" in capsys.readouterr().out
    assert names["mean"] > -500  # random actions get about -1200
    assert Path("runs/notebook/video/flowrl-episode-0.mp4").stat().st_size > 10_000
