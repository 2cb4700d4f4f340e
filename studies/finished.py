"""
Read the finished runs of a study from their files.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import resolve
from .coverage import Ways
from .evaluation import WAYS
from .records import Folders, Record, find_record
from .study import Run, Study


@dataclass(frozen=True)
class Finished:
    """
    A finished run.

    :param run: the run
    :param path: its file
    :param record: the file's contents
    """

    run: Run
    path: Path
    record: Record

    @property
    def steps(self) -> np.ndarray:
        """Return the environment steps of the evaluations, shape (evaluations,)."""
        return np.array([point["step"] for point in self.record["evaluations"]])

    def returns(self, mode: str = "deterministic") -> np.ndarray:
        """
        Return the episodes' returns of all evaluations.

        :param mode: "deterministic" or "stochastic"
        :return: returns, shape (evaluations, episodes); no rows if the run was not evaluated in this mode
        """
        return np.array([point[mode] for point in self.record["evaluations"] if mode in point])

    def ways(self, mode: str) -> list[Ways]:
        """
        Return the ways that the episodes of each evaluation took.

        :param mode: "deterministic" or "stochastic"
        :return: the ways of each evaluation; empty if the environment does not report any
        """
        return [point[WAYS][mode] for point in self.record["evaluations"] if WAYS in point]

    def measured(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """
        Return what the instruments measured.

        :param quantity: one of the quantities of ``sb3_flowrl.diagnostics``
        :return: environment steps and values, shape (measurements,) each; nan for values that were not finite; empty if the
            quantity was not measured
        """
        points = [point for point in self.record.get("diagnostics", []) if quantity in point]
        values = [np.nan if point[quantity] is None else point[quantity] for point in points]
        return np.array([point["step"] for point in points]), np.array(values, dtype=float)

    def settled(self, quantity: str, over: str | None = None) -> float:
        """
        Compute the median of a quantity over the second half of the run.

        :param quantity: as for ``measured``
        :param over: another quantity to divide by at each measurement; None for no division
        :return: the median; nan if the quantity was not measured in that half
        """
        steps, values = self.measured(quantity)
        if over is not None:
            steps_of_other, others = self.measured(over)
            values = values / others if np.array_equal(steps, steps_of_other) else np.full_like(values, np.nan)
        late = values[steps >= self.run.steps / 2] if len(values) else values
        return float(np.nanmedian(late)) if np.isfinite(late).any() else float("nan")

    def final(self, mode: str = "deterministic", last: int = 1) -> float:
        """
        Compute the mean return at the end of the run.

        :param mode: "deterministic" or "stochastic"
        :param last: how many of the last evaluations count
        :return: mean return of these evaluations' episodes
        """
        return float(self.returns(mode)[-last:].mean())

    def after(self, processor_seconds: float) -> float:
        """
        Compute the mean return after a given processor time.

        Returns between evaluations are interpolated linearly, starting from random actions. The file only has the processor
        time of the whole run; it is spread over the evaluations in proportion to their wall-clock times.

        :param processor_seconds: processor time of training without evaluations
        :return: mean deterministic return at that time
        """
        share = self.record["cpu_seconds"] / self.record["seconds"]
        times = [0.0, *(point["seconds"] * share for point in self.record["evaluations"])]
        means = [np.mean(self.record["random_returns"]), *self.returns().mean(axis=1)]
        return float(np.interp(processor_seconds, times, means))

    def swing(self, last: int) -> float:
        """
        Compute how much the mean return varies between the last evaluations.

        :param last: how many of the last evaluations count
        :return: standard deviation of their mean deterministic returns
        """
        return float(self.returns()[-last:].mean(axis=1).std())


@dataclass(frozen=True)
class Results:
    """
    The state of a study.

    :param study: the study
    :param finished: its finished runs, in the study's order
    :param missing: its other runs
    :param failures: tracebacks of the failed runs by their names
    :param last: how many of a run's last evaluations count as its end
    """

    study: Study
    finished: list[Finished]
    missing: list[Run]
    failures: dict[str, str]
    last: int = 1

    def of(self, env: str, label: str) -> list[Finished]:
        """
        Select the finished runs of an algorithm on a task.

        :param env: the task
        :param label: the algorithm
        :return: the runs in the order of their seeds
        """
        return [each for each in self.finished if (each.run.env, each.run.label) == (env, label)]

    def groups(self, runs: Sequence[Finished]) -> Iterator[tuple[str, str, list[Finished]]]:
        """
        Group runs by task and algorithm.

        :param runs: finished runs
        :return: task, algorithm and their runs, in the study's order, without empty groups
        """
        for env in self.study.environments:
            for label in self.study.algorithms:
                if group := [each for each in runs if (each.run.env, each.run.label) == (env, label)]:
                    yield env, label, group

    @property
    def diagnosed(self) -> list[Finished]:
        """Select the finished runs that the instruments measured."""
        return [each for each in self.finished if each.record.get("diagnostics")]

    def seeds(self, env: str, label: str) -> list[int]:
        """
        List the seeds of the finished runs of an algorithm on a task.

        :param env: the task
        :param label: the algorithm
        :return: the seeds
        """
        return [each.run.seed for each in self.of(env, label)]

    def mean_final(self, env: str, label: str) -> float:
        """
        Average the mean return at the end over an algorithm's finished runs on a task.

        :param env: the task
        :param label: the algorithm
        :return: the mean, or nan if no run is finished
        """
        finals = [each.final(last=self.last) for each in self.of(env, label)]
        return float(np.mean(finals)) if finals else float("nan")

    def ratio(self, env: str, label: str) -> float | None:
        """
        Divide an algorithm's mean return at the end by that of the best baseline.

        :param env: the task
        :param label: the algorithm
        :return: the ratio; None if the algorithm has no run, the task has no scale, or the baseline's return is not positive
        """
        if env not in self.scales or not self.of(env, label):
            return None
        best = self.scales[env][1]
        return self.mean_final(env, label) / best if best > 0 else None

    @cached_property
    def scales(self) -> dict[str, tuple[float, float, str]]:
        """
        Find the scale of each task's scores: the returns of random actions and of the best baseline, and its label.

        Tasks are left out if a baseline has no finished run or if no baseline is better than random actions.
        """
        scales = {}
        for env in self.study.environments:
            means = {label: self.mean_final(env, label) for label in self.study.baselines}
            if any(np.isnan(mean) for mean in means.values()):
                continue
            best = max(means, key=lambda label: means[label])
            random = float(np.mean([each.record["random_returns"] for each in self.finished if each.run.env == env]))
            if means[best] > random:
                scales[env] = (random, means[best], best)
        return scales

    def scores(self, env: str, returns: Any) -> Any:
        """
        Convert returns to scores.

        :param env: one of the tasks in ``scales``
        :param returns: returns, a number or an array
        :return: scores: 0 for random actions, 1 for the best baseline's mean at the end
        """
        random, best, _ = self.scales[env]
        return (returns - random) / (best - random)


def collect(study: Study, folders: Folders) -> Results:
    """
    Read the finished runs of a study.

    :param study: the study
    :param folders: the folders of files
    :return: the state of the study
    :raises StudyError: if the study's folder holds records of other runs under the same names
    """
    finished, missing, failures = [], [], {}
    for run in study.runs():
        path = find_record(study, run, folders, resolve)
        if path is not None:
            finished.append(Finished(run, path, json.loads(path.read_text(encoding="utf-8"))))
            continue
        missing.append(run)
        if (failure := folders.failure(study.name, run)).exists():
            failures[run.name] = failure.read_text(encoding="utf-8")
    return Results(study, finished, missing, failures)
