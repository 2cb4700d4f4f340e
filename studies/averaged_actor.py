"""
Compare the returns of an actor and of its moving averages in one run.

Example::

    python -m studies.averaged_actor Hopper-v4 --seed 0

No loss uses an average, so one run serves for every ``actor_tau``. Each evaluation plays ten episodes with each actor, from
the same initial states. The results go to studies/results/averaged_actor/ENV_seedSEED.json. At the end the script prints, for
the second half of the run, the mean return, the mean of the last five evaluations, and the swing: the standard deviation
divided by the mean.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_flowrl import FlowRL, envs, update

RESULTS = Path(__file__).parent / "results" / "averaged_actor"
TAUS = (0.05, 0.01, 0.002)


class CompareAverages(BaseCallback):
    """
    Keep averages of the actor with several rates, and evaluate them all.

    :param env: the environment to evaluate in
    :param every: environment steps between evaluations
    :param n_episodes: episodes of each evaluation of each actor
    :param path: the JSON file to write after each evaluation
    """

    model: FlowRL

    def __init__(self, env: gym.Env, every: int, n_episodes: int, path: Path):
        super().__init__()
        self.env, self.every, self.n_episodes, self.path = env, every, n_episodes, path
        self.rows: list[dict[str, Any]] = []
        self.n_updates_seen = 0

    def _on_training_start(self) -> None:
        self.averages = {tau: copy.deepcopy(self.model.actor).requires_grad_(False) for tau in TAUS}
        for average in self.averages.values():
            average.set_training_mode(False)

    def _on_rollout_start(self) -> None:
        n_updates, model = self.model._n_updates, self.model
        if n_updates > self.n_updates_seen and (n_updates - 1) % model.policy_delay == 0:  # the last update changed the actor
            for tau, average in self.averages.items():
                update.polyak_average(model.actor, average, th.tensor(tau))
        self.n_updates_seen = n_updates

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self.rows.append(dict(step=self.num_timesteps, **self.evaluate()))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
            print({name: value if name == "step" else round(value[0]) for name, value in self.rows[-1].items()}, flush=True)
        return True

    def evaluate(self) -> dict[str, list[float]]:
        """
        Evaluate the actor and its averages.

        :return: mean and standard deviation of the returns, by the name of the actor
        """
        self.model.policy.set_training_mode(False)
        players = [("raw", True, self.model.actor), ("raw stochastic", False, self.model.actor)]
        players += [(str(tau), True, average) for tau, average in self.averages.items()]
        players.append(("0.01 stochastic", False, self.averages[0.01]))
        returns = {}
        state = th.get_rng_state()
        for name, deterministic, actor in players:
            self.env.reset(seed=10_000)
            episodes, _ = evaluate_policy(actor, self.env, self.n_episodes, deterministic, return_episode_rewards=True)
            assert isinstance(episodes, list)
            returns[name] = [statistics.mean(episodes), statistics.pstdev(episodes)]
        th.set_rng_state(state)  # so that the evaluation does not affect the run
        return returns


def main() -> None:
    """Run the command given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=5_000, help="environment steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--learning-starts", type=int, default=5_000)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--output", type=Path, help=f"the JSON file (default: in {RESULTS})")
    args = parser.parse_args()
    th.set_num_threads(1)
    assert envs  # the import registers the suites' ids
    path = args.output or RESULTS / f"{args.env.replace('/', '-')}_seed{args.seed}.json"
    callback = CompareAverages(Monitor(gym.make(args.env)), args.every, args.episodes, path)
    model = FlowRL(
        "MlpPolicy", args.env, seed=args.seed, precision=args.precision, learning_starts=args.learning_starts, actor_tau=None
    )
    model.learn(args.steps, callback=callback)
    second_half = [row for row in callback.rows if row["step"] > args.steps / 2]
    print("second half of the run: mean, mean of the last five, swing")
    for name in [name for name in callback.rows[-1] if name != "step"]:
        means = [row[name][0] for row in second_half]
        swing = statistics.pstdev(means) / statistics.mean(means)
        print(f"{name:16} {statistics.mean(means):8.0f} {statistics.mean(means[-5:]):8.0f} {swing:6.3f}")


if __name__ == "__main__":
    main()
