"""
Compute statistics over tasks and seeds with rliable: interquartile means, intervals, profiles, probabilities of improvement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch as th
from rliable import library, metrics
from scipy.stats import trim_mean

from sb3_flowrl.execution import own_random_numbers

from .finished import Results

Key = TypeVar("Key")

REPLICATIONS = 2_000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
#: Enough for the steps of a profile to look like steps.
N_THRESHOLDS = 201
#: The columns of a table of aggregates.
AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "IQM": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
}


@dataclass(frozen=True)
class Estimate:
    """
    Numbers with their intervals.

    :param value: shape (n,)
    :param interval: lower and upper ends, shape (2, n)
    """

    value: np.ndarray
    interval: np.ndarray

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return float(self.value[index]), float(self.interval[0, index]), float(self.interval[1, index])


@dataclass(frozen=True)
class Block:
    """
    The part of a study that can be averaged over: tasks that all algorithms have run.

    :param envs: the tasks
    :param seeds: for each algorithm, the seeds that it has finished on all of these tasks
    """

    envs: list[str]
    seeds: dict[str, list[int]]


@dataclass(frozen=True)
class Statistics:
    """
    Statistics of a block.

    :param block: what was averaged over
    :param leaving_out: for each algorithm, the IQM at the end of the runs without each of the tasks, in the block's order
    :param aggregates: for each algorithm, one number for each of ``AGGREGATES``, of the scores at the end of its runs
    :param thresholds: the scores at which the profiles are given
    :param profiles: for each algorithm, the share of runs whose score at the end is above each threshold
    :param steps: environment steps of the evaluations
    :param efficiency: for each algorithm, the IQM at each evaluation
    :param improvement: for each pair of algorithms, the probability that a run of the first beats one of the second
    :param lead: for each pair of algorithms, the IQM of the first minus that of the second
    """

    block: Block
    leaving_out: dict[str, list[float]]
    aggregates: dict[str, Estimate]
    thresholds: np.ndarray
    profiles: dict[str, Estimate]
    steps: np.ndarray
    efficiency: dict[str, Estimate]
    improvement: dict[tuple[str, str], Estimate]
    lead: dict[tuple[str, str], Estimate]


def choose_block(results: Results) -> Block | None:
    """
    Choose the tasks and seeds to average over: tasks that have a scale and that every algorithm has finished.

    :param results: the study's results
    :return: the tasks and seeds, or None if there are none
    """
    labels = list(results.study.algorithms)
    envs = [env for env in results.scales if all(results.of(env, label) for label in labels)]
    if not envs:
        return None
    seeds = {label: sorted(set.intersection(*(set(results.seeds(env, label)) for env in envs))) for label in labels}
    return Block(envs, seeds) if all(seeds.values()) else None


def score_matrices(results: Results, block: Block) -> dict[str, np.ndarray]:
    """
    Arrange the mean scores of all evaluations.

    :param results: the study's results
    :param block: the part of them to use
    :return: for each algorithm, mean scores, shape (seeds, tasks, evaluations)
    """
    matrices = {}
    for label, seeds in block.seeds.items():
        finished = [[each for each in results.of(env, label) if each.run.seed in seeds] for env in block.envs]
        scores = [
            [results.scores(env, each.returns().mean(axis=1)) for each in of_env]
            for env, of_env in zip(block.envs, finished, strict=True)
        ]
        matrices[label] = np.swapaxes(np.array(scores), 0, 1)
    return matrices


def final_scores(results: Results, block: Block) -> dict[str, np.ndarray]:
    """
    Arrange the scores at the end of the runs.

    :param results: the study's results
    :param block: the part of them to use
    :return: for each algorithm, scores, shape (seeds, tasks)
    """
    return {label: scores[..., -results.last :].mean(axis=-1) for label, scores in score_matrices(results, block).items()}


def aggregate(finals: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """
    Compute the aggregates with their intervals.

    :param finals: for each algorithm, scores at the end of its runs, shape (seeds, tasks)
    :return: for each algorithm, one number for each of ``AGGREGATES``
    """
    # rliable accepts a random state but still draws from numpy's global generator
    with own_random_numbers(BOOTSTRAP_SEED, th.device("cpu")):
        return _aggregate(finals)


def compute(results: Results) -> Statistics | None:
    """
    Compute the statistics of a study.

    :param results: the study's results
    :return: the statistics, or None if no task has been run by all algorithms
    """
    block = choose_block(results)
    if block is None:
        return None
    curves = score_matrices(results, block)
    finals = final_scores(results, block)
    thresholds = np.linspace(0.0, max(1.5, max(scores.max() for scores in finals.values())), N_THRESHOLDS)
    pairs = {
        (label, baseline): (finals[label], finals[baseline])
        for label in finals
        for baseline in results.study.baselines
        if label not in results.study.baselines
    }
    with own_random_numbers(BOOTSTRAP_SEED, th.device("cpu")):
        return Statistics(
            block=block,
            leaving_out={
                label: [metrics.aggregate_iqm(np.delete(scores, task, axis=1)) for task in range(len(block.envs))]
                for label, scores in finals.items()
                if len(block.envs) > 1
            },
            aggregates=_aggregate(finals),
            thresholds=thresholds,
            profiles=_pack(library.create_performance_profile(finals, thresholds, reps=REPLICATIONS)),
            steps=results.finished[0].steps,
            # metrics.aggregate_iqm of all evaluations in one call, as a call costs far more than its numbers
            efficiency=_estimate(curves, lambda scores: trim_mean(scores.reshape(-1, scores.shape[2]), 0.25)),
            improvement=_estimate(pairs, lambda x, y: np.array([metrics.probability_of_improvement(x, y)])),
            lead=_estimate(pairs, lambda x, y: np.array([metrics.aggregate_iqm(x) - metrics.aggregate_iqm(y)])),
        )


def interval_of_mean(returns: list[float]) -> tuple[float, float]:
    """
    Compute the bootstrap interval of a mean.

    :param returns: one return for each run
    :return: the ends of the interval
    """
    with own_random_numbers(BOOTSTRAP_SEED, th.device("cpu")):
        estimate = _estimate({"": np.array(returns)[:, None]}, lambda scores: np.array([scores.mean()]))[""]
    _, low, high = estimate[0]
    return low, high


def _aggregate(finals: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    return _estimate(finals, lambda scores: np.array([f(scores) for f in AGGREGATES.values()]))


def _estimate(scores: Mapping[Key, Any], statistic: Callable[..., np.ndarray]) -> dict[Key, Estimate]:
    return _pack(library.get_interval_estimates(scores, statistic, reps=REPLICATIONS, confidence_interval_size=CONFIDENCE))


def _pack(estimates: tuple[dict[Key, np.ndarray], dict[Key, np.ndarray]]) -> dict[Key, Estimate]:
    values, intervals = estimates
    return {key: Estimate(values[key], intervals[key]) for key in values}
