"""What the tests of checkpoints share: environments, small runs, and all that the rest of a run depends on."""

import random
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_flowrl import FlowRL, ResumableCheckpointCallback


class DriftEnv(gym.Env):
    """Episodes of random length, in which a state drifts from a random start; `randomness` says what else is random."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Box(-2.0, 1.0, (2,))

    def __init__(self, lengths: tuple[int, int] = (10, 10), randomness: str = "none"):
        self.lengths, self.randomness, self.own_generator = lengths, randomness, random.Random()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.randomness in ("steps from a fixed start", "nothing moves"):
            self.state, self.left = np.zeros(3), self.lengths[0]
            return self.state.astype(np.float32), {}
        self.state = self.np_random.normal(size=3)
        self.left = int(self.np_random.integers(self.lengths[0], self.lengths[1] + 1))
        if self.randomness == "global":
            self.state += random.random() + np.random.rand()
        if self.randomness == "own":
            self.state += self.own_generator.random()
        return self.state.astype(np.float32), {}

    def step(self, action):
        if self.randomness != "nothing moves":
            self.state = 0.9 * self.state + 0.1 * np.append(action, 1.0)
        if "steps" in self.randomness:
            self.state += 0.1 * self.np_random.normal(size=3)
        self.left -= 1
        return self.state.astype(np.float32), -float(np.abs(self.state).sum()), False, self.left == 0, {}


def make_model(env="Pendulum-v1", policy="MlpPolicy", **kwargs) -> FlowRL:
    arguments = dict(seed=3, learning_starts=30, batch_size=8, buffer_size=150, policy_kwargs=dict(net_arch=[8]), device="cpu")
    return FlowRL(policy, env, **{**arguments, **kwargs})


def run_fingerprint(model: FlowRL) -> dict:
    """Everything that the rest of a run depends on."""
    assert model.replay_buffer is not None and model.ep_info_buffer is not None
    tensors = [*model.policy.state_dict().values()]
    for name in model._get_torch_save_params()[0][1:]:
        optimizer = recursive_getattr(model, name)
        tensors += [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return dict(
        tensors=[tensor.numpy().tobytes() for tensor in tensors],
        counters=(model.num_timesteps, model._n_updates, model._episode_num),
        sample=model.replay_buffer.sample(16)[1].numpy().tobytes(),
        observations=str(model._last_obs),
        random=(random.random(), np.random.rand(), th.rand(1).item(), model.action_space.sample().tobytes()),
        returns=[info["r"] for info in model.ep_info_buffer],
    )


def assert_same_run(ours: dict, theirs: dict) -> None:
    for name in ours:
        assert ours[name] == theirs[name], name


def scramble_generators() -> None:
    random.seed(99), np.random.seed(99), th.manual_seed(99)


def drift_envs(n_envs: int, **kwargs) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(DriftEnv(**kwargs))] * n_envs)


def ou_noise() -> OrnsteinUhlenbeckActionNoise:
    return OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.1 * np.ones(2))


class ReachEnv(gym.Env):
    """A point that is to go to a place on a line."""

    def __init__(self):
        line = spaces.Box(-1.0, 1.0, (1,))
        self.observation_space = spaces.Dict(dict(observation=line, achieved_goal=line, desired_goal=line))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -(np.abs(achieved_goal - desired_goal) > 0.1).astype(np.float32).squeeze(-1)

    def _observe(self):
        return dict(observation=self.place.copy(), achieved_goal=self.place.copy(), desired_goal=self.goal.copy())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 1)).astype(np.float32)
        self.left = 10
        return self._observe(), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.2 * action, -1.0, 1.0).astype(np.float32)
        self.left -= 1
        return self._observe(), float(self.compute_reward(self.place, self.goal, {})), False, self.left == 0, {}


class Killed(Exception):
    pass


def learn_until_killed(model: FlowRL, total: int, folder: Path, kill_at: int, save_freq: int = 200) -> None:
    def kill(local_variables: dict, _) -> bool:
        if model.num_timesteps >= kill_at:
            raise Killed
        return True

    with pytest.raises(Killed):
        model.learn(total, callback=[ResumableCheckpointCallback(folder, save_freq), ConvertCallback(kill)])


def resume_and_finish(env, total: int, folder: Path, callback=None) -> FlowRL:
    scramble_generators()
    model = FlowRL.load_checkpoint(folder, env, device="cpu")
    return model.learn(total - model.num_timesteps, reset_num_timesteps=False, callback=callback)


class DimmingWrapper(VecEnvWrapper):
    """Dims observations more and more until it is reset: a state that only a reset brings into a known one."""

    light = 1.0

    def reset(self):
        self.light = 1.0
        return self.venv.reset()

    def step_wait(self):
        self.light *= 0.999
        obs, *rest = self.venv.step_wait()
        return self.light * obs, *rest
