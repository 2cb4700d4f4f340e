"""
Compare the environment steps per second of DummyVecEnv and SubprocVecEnv, without learning.

    python benchmarks/vec_envs.py --envs HalfCheetah-v5 dmc/walker-walk-v0 dmc/dog-run-v0

The tasks are cheap or costly, and actions are random. Both kinds take turns, and each figure is the median of its turns.
Prints a table.
"""

import argparse
import statistics
import time

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import sb3_flowrl.envs  # noqa: F401

KINDS = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}


def steps_a_second(env: VecEnv, seconds: float) -> float:
    """
    Measure the speed of environments.

    :param env: the environments, after a reset
    :param seconds: how long to step them
    :return: environment steps per second, of all environments together
    """
    actions = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(50)]
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        env.step(actions[count % len(actions)])
        count += 1
    return count * env.num_envs / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "dmc/walker-walk-v0", "dmc/dog-run-v0"])
    parser.add_argument("--n-envs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()

    print("| task | kind | " + " | ".join(f"{n_envs}" for n_envs in args.n_envs) + " |")
    print("|---|---|" + "---|" * len(args.n_envs))
    for env_id in args.envs:
        figures: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for n_envs in args.n_envs:
            # the processes import the module before the colon
            makers = [lambda: gym.make(f"sb3_flowrl.envs:{env_id}")] * n_envs  # noqa: B023
            envs: dict[str, VecEnv] = {name: kind(makers) for name, kind in KINDS.items()}
            for env in envs.values():
                env.reset()
            turns = [{name: steps_a_second(env, args.seconds) for name, env in envs.items()} for _ in range(args.turns)]
            for name, env in envs.items():
                figures[name].append(f"{statistics.median(turn[name] for turn in turns):.0f}")
                env.close()
        for name, row in figures.items():
            print(f"| {env_id} | {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
