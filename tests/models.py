"""Small models to test with, what they hold, and what they are made of."""

import copy
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from sb3_flowrl import FlowRL
from sb3_flowrl.buffers import Batch, sample_batches
from sb3_flowrl.flow import FlowNoise, draw_noise
from tests.golden import NETWORKS

SMALL = dict(policy_kwargs=dict(net_arch=[16]), learning_starts=50, batch_size=32, buffer_size=1_000)


def make_model(env="Pendulum-v1", **kwargs) -> FlowRL:
    return FlowRL("MlpPolicy", env, **{**SMALL, "seed": 0, **kwargs})


def trained_model(**kwargs) -> FlowRL:
    return make_model(**kwargs).learn(70)


def networks_of(model: FlowRL) -> set[str]:
    """The names of its networks: a Q_π that is normalized by batch has no target."""
    return {name for name in (*NETWORKS, "averaged_actor") if getattr(model.policy, name) is not None}


def batches_of(model: FlowRL, n_batches: int, batch_size: int) -> list[Batch]:
    """Samples of the model's replay buffer, as its updates see them."""
    assert model.replay_buffer is not None
    normalize = model.get_vec_normalize_env()
    sizes = n_batches, batch_size
    return list(sample_batches(model.replay_buffer, *sizes, model.gamma, normalize, model.device, check=lambda _: None))


def batch_of(model: FlowRL, batch_size: int) -> Batch:
    """A sample of the model's replay buffer, as an update sees it."""
    (batch,) = batches_of(model, 1, batch_size)
    return batch


def noise_of(model: FlowRL, batch_size: int) -> FlowNoise:
    """Random numbers as of one update of the model."""
    return draw_noise(batch_size, model.actor.action_dim, model.device)


def parameters(model: FlowRL) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(ours: dict[str, th.Tensor], theirs: dict[str, th.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert th.equal(value, theirs[name]), name


def assert_compiles_alike(make: Callable[..., FlowRL], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three updates of a model change its networks alike, compiled and not: ``make`` takes ``compile``."""
    # Without code generation, which takes most of the time
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    th.compiler.reset()
    eager = make(compile=False).learn(55)
    compiled = make(compile=True)
    compiled._setup_learn(0)
    compiled.set_parameters(copy.deepcopy(eager.get_parameters()))
    compiled.replay_buffer, compiled._n_updates = eager.replay_buffer, eager._n_updates
    for model in (eager, compiled):
        set_random_seed(5)
        for _ in range(3):
            model.train(1, 32)
    for name, value in parameters(eager).items():
        assert th.allclose(value, parameters(compiled)[name], atol=1e-5), name


def moments(model: FlowRL) -> dict[str, th.Tensor]:
    """Adam's, asked of the optimisers themselves, so that none that isn't saved goes unnoticed."""
    optimizers = {name: getattr(model, name).optimizer for name in ("actor", "critic", "behavior_critic", "behavior_value")}
    return {
        f"{name}/{index}/{key}": value.clone()
        for name, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


class StepCountingEnv(gym.Env):
    """
    Episodes of a fixed length; the observation is the step's number and the reward 1.

    :param terminates: whether an episode ends by termination or by a time-out
    """

    def __init__(self, terminates: bool, length: int = 3):
        self.observation_space = spaces.Box(0, 10, (1,), dtype=np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), dtype=np.float32)
        self.terminates, self.length = terminates, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.steps += 1
        ends = self.steps == self.length
        obs = np.full(1, self.steps, dtype=np.float32)
        return obs, 1.0, ends and self.terminates, ends and not self.terminates, {}


class ScaleExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, scale: float):
        super().__init__(observation_space, features_dim=3)
        self.scale = nn.Parameter(th.tensor(scale))

    def forward(self, observations):
        return self.scale * observations
