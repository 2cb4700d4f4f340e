"""
Make the first learning curves: FlowRL beside SB3's SAC on the same seeds.

Run one seed of one algorithm (a finished run is skipped)::

    python -m studies.learning_curves run --algo flowrl --env HalfCheetah-v5 --steps 100000 --seed 0

Plot and tabulate all runs of a folder::

    python -m studies.learning_curves report --results studies/results/first_curves/halfcheetah

All runs have networks of 256x2, 5 000 random first steps and one update a step. FlowRL has the constants of the paper and its
authors (``flowrl-fast``: at its fastest setting), SAC its defaults. Each evaluation plays 10 deterministic and 10 stochastic
episodes in a separate environment and does not affect the random numbers of the training. The runs use one thread each.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from torch import nn

from sb3_flowrl import FlowRL
from studies.records import without_folders

#: Constants of the paper and its authors.
OF_THE_PAPER: dict[str, Any] = dict(
    learning_rate=3e-4,
    spread_coef=0.0,
    actor_tau=None,
    policy_kwargs=dict(activation_fn=dict(pi=nn.ELU, qf=nn.GELU), batch_norm=False, optimizer_kwargs=dict(fused=True)),
)
#: The classes and arguments of the algorithms.
ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any]]] = {
    "flowrl": (FlowRL, OF_THE_PAPER),
    "flowrl-fast": (FlowRL, OF_THE_PAPER | dict(precision="bfloat16", compile=True)),
    "sac": (SAC, {}),
}
MODES = {"deterministic": True, "stochastic": False}
RESULTS = Path(__file__).parent / "results" / "first_curves" / "halfcheetah"


class EvaluateBothWays(BaseCallback):
    """
    Evaluate deterministically and stochastically every ``eval_freq`` steps, and write the curve to a file each time.

    :param record: the contents of the file besides the curve
    :param path: the JSON file
    :param env_id: the environment to evaluate in
    :param eval_freq: environment steps between evaluations
    :param n_episodes: episodes of each evaluation in each mode
    """

    def __init__(self, record: dict, path: Path, env_id: str, eval_freq: int, n_episodes: int):
        super().__init__()
        self.record, self.path, self.eval_freq, self.n_episodes = record, path, eval_freq, n_episodes
        self.eval_env = Monitor(gym.make(env_id))
        self.start = time.time()
        self.record.update(curve=[], finished=False)

    def _on_step(self) -> bool:
        if self.num_timesteps % self.eval_freq == 0:
            point: dict = {"step": self.num_timesteps, "seconds": round(time.time() - self.start, 1)}
            with th.random.fork_rng(devices=[]):
                for mode, deterministic in MODES.items():
                    self.eval_env.reset(seed=1_000_000 + self.record["seed"])
                    th.manual_seed(self.num_timesteps)
                    returns, _ = evaluate_policy(
                        self.model,
                        self.eval_env,
                        self.n_episodes,
                        deterministic=deterministic,
                        return_episode_rewards=True,
                    )
                    point[mode] = np.round(returns, 2).tolist()
            self.record["curve"].append(point)
            self._write()
            print(self.record["algo"], self.record["seed"], point["step"], *(np.mean(point[mode]).round(1) for mode in MODES))
        return True

    def _on_training_end(self) -> None:
        self.record.update(finished=True, seconds=round(time.time() - self.start, 1))
        self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.record, indent=1))


def run(args: argparse.Namespace) -> None:
    """Do one run, unless it is finished."""
    env_name = args.env.split(":")[-1].replace("/", "-")  # drops the module in sb3_flowrl.envs:dmc/walker-walk-v0
    path = args.results / f"{env_name}_{args.algo}_seed{args.seed}.json"
    if path.exists() and json.loads(path.read_text())["finished"]:
        print(f"{path} is finished; delete it to run it again.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    packages = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    record = dict(
        algo=args.algo,
        env=args.env,
        seed=args.seed,
        steps=args.steps,
        command=" ".join(["python -m studies.learning_curves", *without_folders(sys.argv[1:])]),
        commit=commit,
        versions={package: version(package) for package in packages} | {"python": platform.python_version()},
        threads=th.get_num_threads(),
    )
    algorithm, arguments = ALGORITHMS[args.algo]
    arguments = dict(learning_starts=5_000) | arguments
    arguments["policy_kwargs"] = dict(net_arch=[256, 256]) | arguments.get("policy_kwargs", {})
    model = algorithm("MlpPolicy", args.env, seed=args.seed, device="cpu", **arguments)
    model.learn(args.steps, callback=EvaluateBothWays(record, path, args.env, args.eval_freq, args.episodes))


def report(args: argparse.Namespace) -> None:
    """Plot and tabulate all runs of a folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from studies.figures import name_algorithm

    records = [json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))]
    figure, axis = plt.subplots(figsize=(8, 5))
    algos = sorted({record["algo"] for record in records})
    print("| run | mode | " + " | ".join(f"{step // 1000} k" for step in args.at) + " |")
    print("|---|---|" + "---|" * len(args.at))
    for record in records:
        steps = [point["step"] for point in record["curve"]]
        for mode, style in zip(MODES, ("-", "--"), strict=True):
            means = [np.mean(point[mode]) for point in record["curve"]]
            cells = [f"{means[steps.index(step)]:.0f}" if step in steps else "" for step in args.at]
            run = f"{name_algorithm(record['algo'])} seed {record['seed']}"
            print(f"| {run} | {mode} | " + " | ".join(cells) + " |")
            axis.plot(steps, means, style, color=f"C{algos.index(record['algo'])}", label=f"{run} {mode}")
    axis.set(xlabel="environment steps", ylabel="mean return of an evaluation's episodes", title=records[0]["env"])
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.results / "curves.png", dpi=120)
    print(f"\nwrote {args.results / 'curves.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report"])
    parser.add_argument("--algo", choices=ALGORITHMS, default="flowrl")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-freq", type=int, default=5_000, help="environment steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of an evaluation, in each mode")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs' JSON files")
    parser.add_argument("--at", type=int, nargs="+", default=[10_000, 20_000, 30_000, 60_000, 100_000])
    parsed = parser.parse_args()
    {"run": run, "report": report}[parsed.action](parsed)
