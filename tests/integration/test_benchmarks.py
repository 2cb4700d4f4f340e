"""The benchmarks run, and the transcription that FlowRL's speed is compared with computes FlowRL's numbers."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from tests.golden import N_UPDATES, NETWORKS, GoldenRun, authors_names, golden_sets, load_golden_set
from tests.models import make_model

ROOT = Path(__file__).parents[2]
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
        slow("bench_update.py", ["FlowRL float32", "FlowRL bfloat16", "SAC", "TD3", "TQC", "CrossQ", "transcription"]),
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
    options = ["--cold-start", "--architectures", "256x2", "--contenders", compiled]
    printed, kept = run_benchmark(tmp_path, "bench_update.py", *options)
    assert f"| {compiled} | empty cache |" in printed and f"| {compiled} | warm cache |" in printed
    cold, warm = (kept["results"][-1]["first_updates_seconds"][compiled][cache] for cache in ("empty cache", "warm cache"))
    assert cold[0] > warm[0] > warm[-1]


@pytest.mark.parametrize("delay_behavior, actor_tau", [(False, None), (True, 0.01)])
def test_roofline_counts_the_networks_that_an_update_steps_and_averages(delay_behavior, actor_tau, benchmarks):
    model = make_model(delay_behavior=delay_behavior, actor_tau=actor_tau, policy_delay=2)
    critic, actor, behavior_critic, behavior_value, target = (
        sum(parameter.numel() for parameter in getattr(model, name).parameters())
        for name in ("critic", "actor", "behavior_critic", "behavior_value", "behavior_critic_target")
    )
    behavior = (behavior_critic + behavior_value) / (2 if delay_behavior else 1)
    averaged = target + (actor if actor_tau else 0)
    assert model.critic_target is None  # batch normalization takes its place
    # Adam reads four numbers of each parameter and writes three; averaging reads two and writes one
    assert benchmarks.bytes_of_updates(model) == dict(
        parameters=critic + actor + behavior_critic + behavior_value,
        adam=7 * 4 * (critic + actor / 2 + behavior),
        polyak=3 * 4 * averaged / 2,
    )


def test_update_benchmark_counts_updates_at_each_number_of_gradient_steps(benchmarks, monkeypatch):
    blocks = []

    def time_in_turns(contenders, rounds, seconds, multiple):
        blocks.append(multiple)
        return {name: [2.0] for name in contenders}  # calls a second

    monkeypatch.setattr(benchmarks, "time_in_turns", time_in_turns)
    monkeypatch.setattr(benchmarks, "COPY_BYTES", 2**10)
    args = benchmarks.Namespace(
        contenders=["SAC"], obs_dim=3, action_dim=1, batch_size=4, buffer_size=10, device="cpu", rounds=1, seconds=0.0
    )
    args.gradient_steps = [1, 8]
    one, eight = benchmarks.measure(benchmarks.replace(benchmarks.ARCHITECTURES["defaults"], width=8), args)
    assert (one["gradient_steps"], eight["gradient_steps"]) == (1, 8)
    assert one["updates_per_second"] == dict(SAC=[2.0]) and eight["updates_per_second"] == dict(SAC=[16.0])
    assert blocks == [6, 3]  # so that a block has as many of the delayed steps as any other


def test_blocks_are_timed_when_nothing_more_is_captured(benchmarks):
    blocks: list[int] = []
    benchmarks.time_in_turns(dict(work=blocks.append), rounds=1, seconds=1e-9, multiple=5)
    assert blocks == [15, 5, 5]  # the warm-up, the length of a block, and the block


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


def run_device_script(out: Path, *options: str, failing: str = "nothing", takes: str = "exit 0") -> tuple[int, dict, str]:
    """
    What ``device.sh`` says of itself where its steps only leave their files.

    :param out: where to
    :param options: of the script
    :param failing: the step's script that does something else
    :param takes: what it does instead
    :return: the exit code, ``summary.json``, ``device.log``
    """
    stand_in = out.parent / "python"
    stand_in.write_text(f"""#!/usr/bin/env bash
        case "$*" in
            *"{failing}"*) {takes} ;;
            *"-m pytest"* | *"-m pip"*) exit 0 ;;
            *bench_*) while test "$1" != --output; do shift; done; echo "{{}}" > "$2" ;;
            *) exec {sys.executable} "$@" ;;
        esac""")
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in), "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / "benchmarks" / "device.sh"), str(out), *options]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    return result.returncode, json.loads((out / "summary.json").read_text()), (out / "device.log").read_text()


without_bash = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("timeout")), reason="needs bash and GNU timeout")
STEPS = ["machine", "tests", "update", "learn", "profile"]


def steps_of(summary: dict) -> dict[str, int]:
    """The exit codes of the steps, without the installation of wheels, which only happens where there are some."""
    return {step["name"]: step["exit_code"] for step in summary["steps"] if step["name"] != "packages"}


@without_bash
def test_device_script_leaves_json_and_a_log(tmp_path):
    code, summary, log = run_device_script(tmp_path / "out", "--dry-run")
    assert code == 0 and summary["dry_run"] and steps_of(summary) == dict.fromkeys(STEPS, 0)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["bench_learn.json", "bench_profile.json", "bench_update.json", "device.log", "summary.json"]
    assert all(re.search(rf"^{step} +[0-9]+ s  passed$", log, re.MULTILINE) for step in STEPS)


@without_bash
@pytest.mark.parametrize(
    "failing, step", [("-m pytest", "tests"), ("bench_update.py", "update"), ("bench_profile.py", "profile")]
)
def test_device_script_fails_with_any_of_its_steps_and_does_the_others(failing, step, tmp_path):
    code, summary, log = run_device_script(tmp_path / "out", "--dry-run", failing=failing, takes="exit 3")
    assert code != 0 and steps_of(summary) == {**dict.fromkeys(STEPS, 0), step: 3}
    assert re.search(rf"^{step} +[0-9]+ s  failed: exit code 3$", log, re.MULTILINE)


@without_bash
def test_device_script_fails_without_a_gpu_and_takes_at_most_eight_minutes(tmp_path):
    code, summary, log = run_device_script(tmp_path / "out")
    assert code != 0 and not summary["dry_run"] and steps_of(summary) == {**dict.fromkeys(STEPS, 0), "machine": 1}
    assert "PyTorch sees no GPU here" in log
    limit_of_packages, seconds_to_kill = 25, 3
    limits = [step["limit"] for step in summary["steps"] if step["name"] != "packages"]
    assert sum(limits) + limit_of_packages + seconds_to_kill <= 8 * 60


def traced(name: str, category: str, start: float, microseconds: float) -> dict[str, Any]:
    """An event as PyTorch's profiler writes it."""
    return dict(ph="X", name=name, cat=category, ts=start, dur=microseconds, args={})


def test_trace_summary_counts_kernels_gaps_and_launches_of_an_update(benchmarks):
    from trace_summary import print_summary, summarize

    events = [
        dict(ph="M", name="process_name"),
        traced("aten::mm", "cpu_op", 0, 100),
        traced("gpu range", "gpu_user_annotation", 0, 100),
        traced("cudaGraphLaunch", "cuda_runtime", 0, 8),
        traced("cuLaunchKernel", "cuda_driver", 50, 2),
        traced("cudaMemcpyAsync", "cuda_runtime", 60, 4),
        traced("cudaStreamSynchronize", "cuda_runtime", 70, 30),
        traced("matmul", "kernel", 10, 20),
        traced("add", "kernel", 15, 5),  # beside the last one, on another stream
        traced("matmul", "kernel", 40, 20),
        traced("Memcpy DtoH", "gpu_memcpy", 90, 10),
    ]
    summary = summarize(reversed(events), n_updates=2)
    assert {name: value for name, value in summary.items() if not isinstance(value, list)} == dict(
        kernels=2.0, launches=1.0, waits=0.5, busy_microseconds=25.0, idle_microseconds=20.0
    )
    assert summary["top_kernels"][0] == dict(name="matmul", count=1.0, microseconds=20.0)
    assert summary["top_gaps"] == [
        dict(name="matmul → Memcpy DtoH", count=0.5, microseconds=15.0),
        dict(name="matmul → matmul", count=0.5, microseconds=5.0),
    ]
    assert [call["name"] for call in summary["driver_calls"]] == [
        "cudaStreamSynchronize",
        "cudaGraphLaunch",
        "cudaMemcpyAsync",
        "cuLaunchKernel",
    ]
    print_summary("FlowRL", summary)


def test_trace_summary_of_a_cpu_is_all_zeros(benchmarks):
    from trace_summary import summarize

    summary = summarize([traced("aten::mm", "cpu_op", 0, 100)], n_updates=1)
    assert not any(summary.values())
