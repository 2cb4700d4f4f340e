"""
Evaluate a policy while it is trained, without any effect on the training.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_flowrl import FlowRL
from sb3_flowrl.diagnostics.callback import DiagnosticsCallback
from sb3_flowrl.execution import own_random_numbers

from .study import Run

#: The model's attribute that holds the journal.
JOURNAL = "study_journal"
#: Far from the seeds of training.
FIRST_EVALUATION_SEED = 1_000_000
#: The key in ``info`` for the way that an episode took (None for no success), in environments with several equally good ways;
#: and the key in an evaluation for the ways of its episodes.
WAY, WAYS = "way", "ways"
#: Decimal places of a recorded return.
DIGITS = 3
#: Significant digits of a recorded measurement.
SIGNIFICANT_DIGITS = 5


def journal_of(model: BaseAlgorithm) -> dict[str, Any]:
    """
    Return the journal of a run: its evaluations, its times, where it was resumed, and the commits that it ran with.

    The journal is kept in the model, so that a checkpoint holds exactly the evaluations up to its own step.

    :param model: the model that is trained
    :return: the journal, to be changed in place
    """
    clocks = dict(seconds=0.0, cpu_seconds=0.0, evaluation_seconds=0.0)
    empty: dict[str, Any] = dict(evaluations=[], diagnostics=[], random_returns=[], **clocks, resumed_at=[], commits=[])
    return vars(model).setdefault(JOURNAL, empty)


class Instruments(DiagnosticsCallback):
    """
    Instruments that write to the journal what :class:`DiagnosticsCallback` would log. Numbers that are not finite become None.
    """

    def _on_training_start(self) -> None:
        self.points = journal_of(self.model).setdefault("diagnostics", [])  # older checkpoints have none
        self.last_measured = self.points[-1]["step"] if self.points else None

    def _keep(self, measured: dict[str, float]) -> None:
        numbers = {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in measured.items()}
        point = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.points.append(dict(step=self.num_timesteps, **point))


class RandomPolicy:
    """
    Uniformly random actions.

    :param env: the environments to act in
    :param seed: seed of the actions
    """

    def __init__(self, env: VecEnv, seed: int):
        self.action_space, self.n_envs = env.action_space, env.num_envs
        self.action_space.seed(seed)

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, None]:
        """Draw an action for each environment. Stands in for a model's ``predict``; the arguments have no effect."""
        return np.array([self.action_space.sample() for _ in range(self.n_envs)]), None


class Evaluate(BaseCallback):
    """
    Evaluate in each mode at regular intervals, and measure the time.

    Each environment plays one episode of an evaluation, and starts it from the same state at every evaluation. Before the
    first step, uniformly random actions are evaluated in the same way: their return has the score 0.

    :param run: the run; it says how to evaluate
    :param env: as many environments as an evaluation has episodes; nothing else may use them
    :param tell: called at every step with the number of steps done
    :param instruments: additional measurements, if any
    :param best_policy: safe file for the policy of the best evaluation, for a model that can write one
    :raises ValueError: when training starts, if its environments step past the evaluations
    """

    def __init__(
        self,
        run: Run,
        env: VecEnv,
        tell: Callable[[int], None],
        instruments: Instruments | None = None,
        best_policy: Path | None = None,
    ):
        super().__init__()
        self.run, self.env, self.tell, self.instruments, self.best_policy = run, env, tell, instruments, best_policy

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
            self._keep_best_policy()
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

    def _keep_best_policy(self) -> None:
        """Save the policy if no earlier evaluation was better."""
        mode = next(iter(self.run.modes))
        returns = [np.mean(point[mode]) for point in self.journal["evaluations"]]
        if isinstance(self.model, FlowRL) and self.best_policy is not None and returns[-1] >= max(returns):
            self.best_policy.parent.mkdir(exist_ok=True)
            try:
                self.model.save_policy_safe(self.best_policy)
            except (ImportError, ValueError) as error:  # no safetensors, or an actor of another kind; the run goes on
                print(f"The policy is not kept: {error}")

    def _play(self, policy: PolicyPredictor, deterministic: bool) -> tuple[list[float], list[str | None]]:
        """Play the episodes, and return their returns and, if the environment reports them, their ways in the same order."""
        ways: list[str | None] = []

        def note_way(local_names: dict[str, Any], _: dict[str, Any]) -> None:
            if local_names["done"] and WAY in local_names["info"]:
                ways.append(local_names["info"][WAY])

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
        """Add the wall-clock and processor time since the last call to these entries of the journal."""
        before, self.last_reading = self.last_reading, read_clocks()
        for name, earlier, now in zip(names, before, self.last_reading, strict=False):
            self.journal[name] += now - earlier


def read_clocks() -> tuple[float, float]:
    """
    Read the clocks.

    :return: wall-clock seconds, and processor seconds of this process
    """
    return time.perf_counter(), time.process_time()
