"""Make up studies and finished runs for tests."""

import copy
from pathlib import Path
from typing import Any

import yaml

from studies.arguments import resolve
from studies.records import Folders, describe_machine, to_json, write_atomically
from studies.study import Run, Study, load_study

#: A study that is learned in seconds, though not well.
CONTENTS: dict[str, Any] = dict(
    description="A made-up question?",
    environments=["Pendulum-v1"],
    seeds=[0],
    steps=600,
    evaluation=dict(every=200, episodes=3),
    baselines=["sac"],
    hyperparameters=dict(policy_kwargs="dict(net_arch=[16, 16])", learning_starts=100, train_freq=8, batch_size=32),
    algorithms=dict(flowrl=None, sac=None),
)


def contents(**changes: Any) -> dict[str, Any]:
    """The study's contents, with some of them changed."""
    return {**copy.deepcopy(CONTENTS), **changes}


def write_study(folder: Path, name: str = "made-up", **changes: Any) -> Path:
    """Write a study file."""
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(contents(**changes), sort_keys=False))
    return path


def make_study(folder: Path, name: str = "made-up", **changes: Any) -> Study:
    """Write a study file and read it."""
    return load_study(write_study(folder, name, **changes))


def finish(study: Study, run: Run, folders: Folders, final: float, random: float = 0.0) -> None:
    """Write what a run would leave behind whose returns rise from a random policy's to a final one."""
    episodes, n_evaluations = study.evaluation.episodes, study.steps // study.evaluation.every
    evaluations = []
    for index in range(1, n_evaluations + 1):
        mean = random + (final - random) * index / n_evaluations
        point: dict[str, Any] = dict(step=index * study.evaluation.every, seconds=float(index))
        for mode in run.modes:
            point[mode] = [mean + offset - (episodes - 1) / 2 for offset in range(episodes)]
        evaluations.append(point)
    record = dict(
        run=run.specification(),
        **resolve(run),
        evaluations=evaluations,
        random_returns=[random] * episodes,
        seconds=7200.0,
        cpu_seconds=3600.0,
        evaluation_seconds=1.0,
        resumed_at=[],
        commits=["made-up"],
        n_updates=36_000,
        finished="2026-01-01T00:00:00+00:00",
        command="made up",
        **describe_machine(),
    )
    write_atomically(folders.record(study.name, run), to_json(record))
