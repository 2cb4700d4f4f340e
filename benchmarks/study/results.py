"""
What has been found so far in a study, read from its runs' files.
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

    :param run: what was done
    :param path: its file
    :param record: the file's contents
    """

    run: Run
    path: Path
    record: Record

    @property
    def steps(self) -> np.ndarray:
        """Environment steps of the evaluations, shape (evaluations,)."""
        return np.array([point["step"] for point in self.record["evaluations"]])

    def returns(self, mode: str = "deterministic") -> np.ndarray:
        """
        :param mode: "deterministic" or "stochastic"
        :return: returns, shape (evaluations, episodes); no rows if it was not evaluated in this mode
        """
        return np.array([point[mode] for point in self.record["evaluations"] if mode in point])

    def ways(self, mode: str) -> list[Ways]:
        """
        :param mode: "deterministic" or "stochastic"
        :return: for each evaluation, the ways that its episodes took; empty if the environment does not tell
        """
        return [point[WAYS][mode] for point in self.record["evaluations"] if WAYS in point]

    def measured(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """
        :param quantity: one of those of ``sb3_flowrl.diagnostics.callback``
        :return: environment steps and values, shape (measurements,) each; nan where it was not finite, and empty if it was
            not measured
        """
        points = [point for point in self.record.get("diagnostics", []) if quantity in point]
        values = [np.nan if point[quantity] is None else point[quantity] for point in points]
        return np.array([point["step"] for point in points]), np.array(values, dtype=float)

    def settled(self, quantity: str, over: str | None = None) -> float:
        """
        :param quantity: as for ``measured``
        :param over: another, that it is divided by at each measurement; None for the quantity itself
        :return: the median over the second half of the steps; nan if it was not measured there
        """
        steps, values = self.measured(quantity)
        if over is not None:
            steps_of_other, others = self.measured(over)
            values = values / others if np.array_equal(steps, steps_of_other) else np.full_like(values, np.nan)
        late = values[steps >= self.run.steps / 2] if len(values) else values
        return float(np.nanmedian(late)) if np.isfinite(late).any() else float("nan")

    def final(self, mode: str = "deterministic", last: int = 1) -> float:
        """
        :param mode: "deterministic" or "stochastic"
        :param last: how many of the last evaluations count
        :return: mean return of these evaluations' episodes
        """
        return float(self.returns(mode)[-last:].mean())

    def after(self, processor_seconds: float) -> float:
        """
        :param processor_seconds: processor time of training, evaluations aside
        :return: mean return, deterministic, when the run had had so much: on straight lines between the evaluations, from
            random actions at the start. The file has the processor time of the whole run alone; it is dealt out as the
            evaluations' times on the wall's clock were
        """
        share = self.record["cpu_seconds"] / self.record["seconds"]
        times = [0.0, *(point["seconds"] * share for point in self.record["evaluations"])]
        means = [np.mean(self.record["random_returns"]), *self.returns().mean(axis=1)]
        return float(np.interp(processor_seconds, times, means))

    def swing(self, last: int) -> float:
        """
        :param last: how many of the last evaluations count
        :return: standard deviation of their mean returns, deterministic, around the mean of them all
        """
        return float(self.returns()[-last:].mean(axis=1).std())


@dataclass(frozen=True)
class Results:
    """
    The state of a study.

    :param study: the study
    :param finished: its finished runs, in the study's order
    :param missing: its other runs
    :param failures: tracebacks of those that failed
    :param last: how many of a run's last evaluations count as its end
    """

    study: Study
    finished: list[Finished]
    missing: list[Run]
    failures: dict[str, str]
    last: int = 1

    def of(self, env: str, label: str) -> list[Finished]:
        """
        :param env: the task
        :param label: the algorithm
        :return: its finished runs, by their seeds
        """
        return [each for each in self.finished if (each.run.env, each.run.label) == (env, label)]

    def groups(self, runs: Sequence[Finished]) -> Iterator[tuple[str, str, list[Finished]]]:
        """
        :param runs: finished runs
        :return: task, algorithm, and those of the runs that are theirs, in the study's order, where there are any
        """
        for env in self.study.environments:
            for label in self.study.algorithms:
                if group := [each for each in runs if (each.run.env, each.run.label) == (env, label)]:
                    yield env, label, group

    @property
    def measured(self) -> list[Finished]:
        """The finished runs with measurements of the instruments."""
        return [each for each in self.finished if each.record.get("diagnostics")]

    def seeds(self, env: str, label: str) -> list[int]:
        """
        :param env: the task
        :param label: the algorithm
        :return: seeds of its finished runs
        """
        return [each.run.seed for each in self.of(env, label)]

    def mean_final(self, env: str, label: str) -> float:
        """
        :param env: the task
        :param label: the algorithm
        :return: mean over its finished runs of their mean return at the end, nan if there is none
        """
        finals = [each.final(last=self.last) for each in self.of(env, label)]
        return float(np.mean(finals)) if finals else float("nan")

    def ratio(self, env: str, label: str) -> float | None:
        """
        :param env: the task
        :param label: the algorithm
        :return: its mean return at the end, divided by the best baseline's; None where it has not been run, or the task has no
            scale or one on which a ratio means nothing
        """
        if env not in self.scales or not self.of(env, label):
            return None
        best = self.scales[env][1]
        return self.mean_final(env, label) / best if best > 0 else None

    @cached_property
    def scales(self) -> dict[str, tuple[float, float, str]]:
        """
        For each task the returns of random actions and of the best baseline, and that baseline's label. Tasks are left out
        where some baseline has not been run, or none is better than random actions.
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
        :param env: one of the tasks in ``scales``
        :param returns: returns, a number or an array
        :return: scores: 0 for random actions, 1 for the best baseline's mean at the end
        """
        random, best, _ = self.scales[env]
        return (returns - random) / (best - random)


def collect(study: Study, folders: Folders) -> Results:
    """
    :param study: the study
    :param folders: where files are
    :return: its state
    :raises StudyError: if there are results of other runs in the place of the study's
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
