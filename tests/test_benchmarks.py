"""The benchmarks run, and the transcription that FlowRL's speed is compared with computes FlowRL's numbers."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from tests.golden import N_UPDATES, NETWORKS, GoldenRun, authors_names, golden_sets, load_golden_set

ROOT = Path(__file__).parent.parent
PARAMETER_ATOL = 3e-5  # one Adam step is 3e-4
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_update

    return bench_update


def numbers(contents: Any) -> list[float]:
    """All numbers of a JSON file, however deep."""
    if isinstance(contents, dict):
        contents = list(contents.values())
    if isinstance(contents, list):
        return [number for part in contents for number in numbers(part)]
    return [contents] if isinstance(contents, (int, float)) else []


def run_benchmark(folder: Path, script: str, *arguments: str) -> tuple[str, dict]:
    """What a benchmark prints, and the JSON file that it writes."""
    path = folder / "new" / "results.json"
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--output", str(path), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(path.read_text())


@pytest.mark.parametrize(
    "script, rows",
    [
        ("bench_update.py", ["FlowRL float32", "FlowRL bfloat16", "SAC", "TD3", "TQC", "CrossQ", "transcription"]),
        ("bench_learn.py", ["FlowRL float32", "SAC"]),
        slow(
            "bench_predict.py",
            ["FlowRL, deterministic", "FlowRL, stochastic", "SAC, stochastic", "FlowRL ONNX, deterministic"],
        ),
        slow("bench_scaling.py", ["width", "n_envs", "FlowRL float32", "SAC"]),
        slow("bench_memory.py", ["FlowRL float32"]),
        slow("bench_profile.py", ["matrix products", "other kernels", "Adam", "Polyak averaging", "sampling"]),
    ],
)
def test_benchmark_prints_its_tables_and_keeps_its_numbers(script, rows, tmp_path):
    printed, kept = run_benchmark(tmp_path, script)
    for row in rows:
        assert f"\n| {row} |" in printed
    assert {"python", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "numpy"} <= kept["versions"].keys()
    assert kept["processor"]["name"] and kept["commit"] and kept["date"] and script in kept["command"]
    measured = numbers({name: kept[name] for name in ("results", "milliseconds") if name in kept})
    assert len(measured) >= 4 and all(math.isfinite(number) for number in measured)
    if script == "bench_profile.py":
        rounds = kept["results"]["FlowRL float32, 256x2"]["rows"]
        assert all(min(rounds[row]) > 0 for row in rows) and max(rounds["generated kernels"]) == 0
    if script == "bench_scaling.py":
        assert (tmp_path / "new" / "results.png").stat().st_size > 10_000


@pytest.mark.slow
def test_update_benchmark_times_the_compiler(tmp_path):
    compiled = "FlowRL float32 compiled"
    printed, kept = run_benchmark(tmp_path, "bench_update.py", "--cold-start", "--contenders", compiled, "transcription")
    assert f"| {compiled} | empty cache |" in printed and f"| {compiled} | warm cache |" in printed
    cold, warm = (kept["results"][-1]["first_updates_seconds"][compiled][cache] for cache in ("empty cache", "warm cache"))
    assert cold[0] > warm[0] > warm[-1]


@pytest.mark.slow
def test_predict_benchmark_compiles_the_actor(tmp_path):
    printed, _ = run_benchmark(tmp_path, "bench_predict.py", "--compiled")
    assert "| FlowRL compiled, deterministic |" in printed


@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_transcription_computes_the_numbers_of_flowrl(path, benchmarks, monkeypatch):
    data = load_golden_set(path)
    run = GoldenRun(data, per_sample=False)
    hidden = int(data["meta/hidden"])
    transcription = benchmarks.Transcription(
        run.model.replay_buffer, dict(pi=[hidden] * 2, qf=[hidden] * 4), linear_ends=True, flow_steps=int(data["meta/steps"])
    )
    parameters = {
        name: parameter
        for network in NETWORKS
        for name, parameter in zip(authors_names(network), getattr(transcription, network).parameters(), strict=True)
    }
    with th.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(th.as_tensor(data[f"init/{name}"]))
    for update in range(N_UPDATES):
        with monkeypatch.context() as patch:
            patch.setattr(transcription.replay_buffer, "sample", lambda batch_size, update=update: run.batch(update))
            patch.setattr(transcription, "draw_noise", lambda batch_size, update=update: run.noise(update))
            transcription.train(gradient_steps=1)

    of_flowrl = run.run(monkeypatch).parameters()
    assert of_flowrl.keys() == parameters.keys()
    moved = [np.abs(of_flowrl[name] - data[f"init/{name}"]).max() for name in parameters]
    assert np.median(moved) > 10 * PARAMETER_ATOL
    for name, parameter in parameters.items():
        worst = np.abs(parameter.detach().numpy() - of_flowrl[name]).max()
        assert worst <= PARAMETER_ATOL, f"{name}: off by {worst:.3g}, allowed {PARAMETER_ATOL}"


@pytest.mark.parametrize("architecture", ["paper", "table1", "256x2"])
def test_transcription_has_the_networks_of_flowrl(architecture, benchmarks, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_update.py"])
    args = benchmarks.Namespace(obs_dim=5, action_dim=2, buffer_size=10, device="cpu")
    model, transcription = (
        benchmarks.make_contender(name, benchmarks.ARCHITECTURES[architecture], args)
        for name in ("FlowRL float32", "transcription")
    )
    for network in NETWORKS:
        ours, plain = (sum(p.numel() for p in getattr(each, network).parameters()) for each in (model, transcription))
        assert ours == plain, network
