"""
Train and checkpoint in a loop, kill -9 at random instants, resume, and report what was lost. Every second kill waits until a
checkpoint is being written.

    python tests/kills.py --kills 50 --env pendulum
    python tests/kills.py --kills 50 --env pictures

Every checkpoint that had been saved before a kill must be there after it, and whole; and after all the kills the parameters
must be those of a run that was never killed.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.checkpoint.files import find_checkpoint, list_checkpoints

EPISODE = 20  # so short that much of the time goes into checkpoints
LONGEST_WRITE = 0.005  # seconds


class Pictures(gym.Env):
    """
    Dict observations of a picture and a vector, with keys that are not sorted. The rewards are random, and so its generator is
    in use during the episodes.
    """

    observation_space = spaces.Dict(
        [("vector", spaces.Box(-1, 1, (3,), np.float64)), ("picture", spaces.Box(0, 255, (1, 36, 36), np.uint8))]
    )
    action_space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32))

    def observe(self) -> dict[str, np.ndarray]:
        picture = self.np_random.integers(0, 255, (1, 36, 36), dtype=np.uint8, endpoint=True)
        return {"vector": self.np_random.uniform(-1, 1, 3), "picture": picture}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        return self.observe(), float(self.np_random.normal() - np.square(action).sum()), False, False, {}


def make_pendulum() -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=EPISODE)


def make_pictures() -> VecEnv:
    """Two at once, normalized."""
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(Pictures(), EPISODE // 2), n_envs=2)
    return VecNormalize(env, norm_obs_keys=["vector"])


#: How each environment is made, and arguments of its model.
ENVIRONMENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pendulum": (make_pendulum, dict(policy="MlpPolicy", policy_kwargs=dict(net_arch=[64, 64]))),
    "pictures": (
        make_pictures,
        dict(
            policy="MultiInputPolicy",
            policy_kwargs=dict(net_arch=[16], features_extractor_kwargs=dict(cnn_output_dim=8)),
            buffer_size=2_000,
            gradient_steps=1,
        ),
    ),
}


class Report(ResumableCheckpointCallback):
    """Tells the parent process of each checkpoint once it is saved."""

    def __init__(self, folder: Path, pipe: int):
        super().__init__(folder, save_freq=EPISODE)
        self.pipe = pipe

    def _save(self, subfolder: str = "") -> None:
        super()._save(subfolder)
        os.write(self.pipe, f"{self.last_saved}\n".encode())


def train(name: str, folder: Path, total: int, pipe: int) -> None:
    """Begin or resume a run, and finish it; what is left is a hash of its parameters."""
    warnings.simplefilter("error")
    make_env, arguments = ENVIRONMENTS[name]
    env = make_env()
    if list_checkpoints(folder):
        model = FlowRL.load_checkpoint(folder, env, device="cpu")
    else:
        kwargs: dict[str, Any] = dict(learning_starts=EPISODE, batch_size=8, train_freq=EPISODE // env_count(env))
        model = FlowRL(env=env, seed=0, device="cpu", **{"gradient_steps": 2, **kwargs, **arguments})
    model.learn(max(total - model.num_timesteps, 0), callback=Report(folder, pipe), reset_num_timesteps=False)
    parameters = b"".join(tensor.numpy().tobytes() for tensor in model.policy.state_dict().values())
    (folder / "parameters.sha256").write_text(hashlib.sha256(parameters).hexdigest())


def env_count(env: gym.Env | VecEnv) -> int:
    return env.num_envs if isinstance(env, VecEnv) else 1


def start(name: str, folder: Path, total: int) -> tuple[int, int]:
    """Start `train` in a process of its own; return its number and the pipe that it reports to."""
    reading_end, writing_end = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading_end)
            train(name, folder, total, writing_end)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing_end)
    return process, reading_end


def read_reports(pipe: int) -> list[int]:
    with os.fdopen(pipe) as file:
        return [int(line) for line in file.read().split()]


def run_to_end(name: str, folder: Path, total: int) -> str:
    process, pipe = start(name, folder, total)
    read_reports(pipe)
    if os.waitpid(process, 0)[1] != 0:
        sys.exit("the run failed")
    return (folder / "parameters.sha256").read_text()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def wait_for_a_write(folder: Path) -> None:
    """Return when a checkpoint is being written, or after three seconds without one."""
    end = time.monotonic() + 3
    while not list(folder.glob(".unfinished-*")) and time.monotonic() < end:
        time.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--env", choices=ENVIRONMENTS, default="pendulum")
    parser.add_argument("--seed", type=int, default=0, help="of the instants of the kills")
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    th.set_num_threads(1)  # a process can't be forked from one with threads
    folder = args.folder or Path(tempfile.mkdtemp())
    # Import all that is imported on first use, so that the processes that are to be killed need not
    reading_end, writing_end = os.pipe()
    for _ in range(2):
        train(args.env, folder / "warm-up", 2 * EPISODE, writing_end)
    os.close(reading_end)
    os.close(writing_end)

    killed, rng = folder / "killed", random.Random(args.seed)
    counts = dict(kills=0, kills_while_writing=0, lost_checkpoints=0, damaged_checkpoints=0)
    newest = 0
    while counts["kills"] < args.kills:
        process, pipe = start(args.env, killed, total=10**9)
        time.sleep(rng.uniform(0.0, 0.8))
        if counts["kills"] % 2:
            wait_for_a_write(killed)
            time.sleep(rng.uniform(0.0, LONGEST_WRITE))
        os.kill(process, signal.SIGKILL)
        reports = read_reports(pipe)
        if not os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            sys.exit("the run failed before it was killed")
        counts["kills"] += 1
        counts["kills_while_writing"] += bool(list(killed.glob(".unfinished-*")))
        checkpoints = list_checkpoints(killed)
        newest = max([newest, *reports])
        counts["lost_checkpoints"] += newest > (step_of(checkpoints[-1]) if checkpoints else 0)
        counts["damaged_checkpoints"] += bool(checkpoints) and find_checkpoint(killed) != checkpoints[-1]
    total = newest + 2 * EPISODE
    same = run_to_end(args.env, killed, total) == run_to_end(args.env, folder / "whole", total)
    print(json.dumps(dict(env=args.env, **counts, steps=total, same_parameters_as_without_kills=same), indent=1))


if __name__ == "__main__":
    main()
