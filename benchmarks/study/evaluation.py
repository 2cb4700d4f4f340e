"""
Evaluation of a policy while it is trained, without a trace in the training.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_flowrl.diagnostics.callback import DiagnosticsCallback, own_random_numbers

from .study import Run

#: Where the journal is in a model.
JOURNAL = "study_journal"
#: Apart from the seeds of training.
FIRST_EVALUATION_SEED = 1_000_000
#: Where an environment with several equally good ways says, at an episode's end, which one it took (None for no success), and
#: where an evaluation keeps that.
WAY, WAYS = "way", "ways"
#: Digits after the point that are kept of a return.
DIGITS = 3
#: Significant digits that are kept of a measurement.
SIGNIFICANT_DIGITS = 5


def journal_of(model: BaseAlgorithm) -> dict[str, Any]:
    """
    What is known of a run so far: its evaluations, its clocks, where it was resumed, and the commits that it ran with.

    It is kept in the model, so that a checkpoint holds the evaluations up to its own step, and those alone.

    :param model: the model that is trained
    :return: the journal, to be changed in place
    """
    clocks = dict(seconds=0.0, cpu_seconds=0.0, evaluation_seconds=0.0)
    empty: dict[str, Any] = dict(evaluations=[], diagnostics=[], random_returns=[], **clocks, resumed_at=[], commits=[])
    return vars(model).setdefault(JOURNAL, empty)


class Instruments(DiagnosticsCallback):
    """
    Keeps in the journal what :class:`DiagnosticsCallback` would log. What is not a finite number is kept as None.
    """

    def _on_training_start(self) -> None:
        self.points = journal_of(self.model).setdefault("diagnostics", [])  # checkpoints of before have none
        self.last_measured = self.points[-1]["step"] if self.points else None

    def _keep(self, measured: dict[str, float]) -> None:
        numbers = {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in measured.items()}
        point = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.points.append(dict(step=self.num_timesteps, **point))


class RandomPolicy:
    """
    Uniformly random actions.

    :param env: the environments to act in
    :param seed: of the actions
    """

    def __init__(self, env: VecEnv, seed: int):
        self.action_space, self.n_envs = env.action_space, env.num_envs
        self.action_space.seed(seed)

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        """As a model's; takes no notice of what it is given."""
        return np.array([self.action_space.sample() for _ in range(self.n_envs)]), None


class Evaluate(BaseCallback):
    """
    Evaluate in each mode every so many steps, and keep the time.

    Each environment plays one episode of an evaluation, and begins it from the same state at every evaluation. Before the
    first step, uniformly random actions are evaluated in the same way: that is where the scale of the scores begins.

    :param run: says how to evaluate
    :param env: as many environments as an evaluation has episodes, which nothing else uses
    :param tell: is called with the number of steps done, at every step
    :param instruments: measure besides, if there are any
    :raises ValueError: when training starts, if its environments step past the evaluations
    """

    def __init__(self, run: Run, env: VecEnv, tell: Callable[[int], None], instruments: Instruments | None = None):
        super().__init__()
        self.run, self.env, self.tell, self.instruments = run, env, tell, instruments

    def _init_callback(self) -> None:
        if self.instruments is not None:
            self.instruments.init_callback(self.model)

    def _on_training_start(self) -> None:
        if self.run.evaluation.every % self.training_env.num_envs:
            raise ValueError(
                f"The {self.training_env.num_envs} environments that train together step past the evaluations, every "
                f"{self.run.evaluation.every} steps. Choose n_envs so that it divides them, or give n_envs: 1."
            )
        self.journal = journal_of(self.model)
        self.last_reading = read_clocks()
        if not self.journal["random_returns"]:
            self.journal["random_returns"], _ = self._play(RandomPolicy(self.env, self.run.seed), deterministic=True)
            self._count_time("evaluation_seconds")
        if self.instruments is not None:
            self.instruments.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        if self.instruments is not None:
            self._count_time("seconds", "cpu_seconds")
            self.instruments.on_rollout_start()
            self._count_time("evaluation_seconds")

    def _on_step(self) -> bool:
        self._count_time("seconds", "cpu_seconds")
        if self.num_timesteps % self.run.evaluation.every == 0:
            point: dict[str, Any] = dict(step=self.num_timesteps, seconds=round(self.journal["seconds"], 1))
            ways: dict[str, list[str | None]] = {}
            for mode, deterministic in self.run.modes.items():
                point[mode], ways[mode] = self._play(self.model, deterministic)
            if any(ways.values()):
                point[WAYS] = ways
            self.journal["evaluations"].append(point)
            self._count_time("evaluation_seconds")
        if self.instruments is not None:
            self.instruments.on_step()
        self.tell(self.num_timesteps)
        return True

    def _on_training_end(self) -> None:
        self._count_time("seconds", "cpu_seconds")
        if self.instruments is not None:
            self.instruments.on_training_end()
            self._count_time("evaluation_seconds")

    def _play(self, policy: PolicyPredictor, deterministic: bool) -> tuple[list[float], list[str | None]]:
        """Play the episodes. Their returns; and the ways that they took, in the same order, if the environment tells."""
        ways: list[str | None] = []

        def note_way(found: dict[str, Any], _: dict[str, Any]) -> None:
            if found["done"] and WAY in found["info"]:
                ways.append(found["info"][WAY])

        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.env)
        self.env.seed(FIRST_EVALUATION_SEED + 1_000 * self.run.seed)
        with own_random_numbers(self.num_timesteps, self.model.device):
            returns, _ = evaluate_policy(
                policy,
                self.env,
                self.run.evaluation.episodes,
                deterministic=deterministic,
                callback=note_way,
                return_episode_rewards=True,
            )
        return np.round(returns, DIGITS).tolist(), ways

    def _count_time(self, *names: str) -> None:
        """Add the time since the last call to these entries of the journal, of the wall's clock and of the processor's."""
        before, self.last_reading = self.last_reading, read_clocks()
        for name, earlier, now in zip(names, before, self.last_reading, strict=False):
            self.journal[name] += now - earlier


def read_clocks() -> tuple[float, float]:
    """
    :return: seconds on the wall's clock, and of this process on the processor
    """
    return time.perf_counter(), time.process_time()
