"""
Whether a change of the update's code changes its numbers: parameters after 20 eager updates, bit for bit.

    python -m tests.bitwise record before.pt        # at the old commit
    python -m tests.bitwise compare before.pt       # at the new one, on the same machine

Floating-point sums depend on the processor and on the versions of the libraries, so that the record is not kept.
"""

import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_flowrl import FlowRL

N_UPDATES = 20


class RandomEnv(gym.Env):
    """
    Random observations, and rewards that depend on them and on the action; ends in both ways.

    :param observation_space: what is observed
    """

    def __init__(self, observation_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        terminated, truncated = self.np_random.random(2) < 0.1
        return self._observe(), float(self.np_random.normal() - np.square(action).sum()), bool(terminated), bool(truncated), {}


class LearnedExtractor(BaseFeaturesExtractor):
    """Features that are learned."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, features_dim=7)
        self.linear = nn.Linear(int(np.prod(observation_space.shape or ())), 7)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(observations).tanh()


VECTOR = spaces.Box(-1.0, 1.0, (5,), dtype=np.float32)
DOUBLE = spaces.Box(-1.0, 1.0, (5,), dtype=np.float64)
IMAGE = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
SEVERAL = spaces.Dict(image=IMAGE, vector=VECTOR)
LEARNED = dict(features_extractor_class=LearnedExtractor)
NO_BATCH_NORM, SHARED = dict(batch_norm=False), dict(share_features_extractor=True)

#: Policy, observation space, arguments of the algorithm and of the policy.
CONFIGURATIONS: dict[str, tuple[str, spaces.Space, dict[str, Any], dict[str, Any]]] = {
    "defaults": ("MlpPolicy", VECTOR, {}, {}),
    "no batch norm": ("MlpPolicy", VECTOR, {}, NO_BATCH_NORM),
    "no spread": ("MlpPolicy", VECTOR, dict(spread_coef=0.0), {}),
    "n-step": ("MlpPolicy", VECTOR, dict(n_steps=3), {}),
    "learned extractor": ("MlpPolicy", VECTOR, {}, LEARNED),
    "learned extractor, no batch norm": ("MlpPolicy", VECTOR, {}, LEARNED | NO_BATCH_NORM),
    "shared learned extractor": ("MlpPolicy", VECTOR, {}, LEARNED | SHARED),
    "shared learned extractor, no batch norm": ("MlpPolicy", VECTOR, {}, LEARNED | SHARED | NO_BATCH_NORM),
    "bfloat16": ("MlpPolicy", VECTOR, dict(precision="bfloat16"), {}),
    "CNN": ("CnnPolicy", IMAGE, {}, {}),
    "shared CNN": ("CnnPolicy", IMAGE, {}, SHARED),
    "Dict": ("MultiInputPolicy", SEVERAL, {}, {}),
    "shared Dict": ("MultiInputPolicy", SEVERAL, {}, SHARED),
    "shared": ("MlpPolicy", VECTOR, {}, SHARED),
    "PReLU": ("MlpPolicy", VECTOR, {}, dict(activation_fn=nn.PReLU)),
    "float64 observations": ("MlpPolicy", DOUBLE, {}, {}),
    "SGD": ("MlpPolicy", VECTOR, dict(learning_rate=1e-2), dict(optimizer_class=th.optim.SGD)),
}


def train(name: str) -> dict[str, th.Tensor]:
    """
    :param name: a key of :data:`CONFIGURATIONS`
    :return: all parameters and moments after :data:`N_UPDATES` eager updates
    """
    policy, space, arguments, policy_kwargs = CONFIGURATIONS[name]
    model = FlowRL(
        policy,
        RandomEnv(space),
        learning_starts=40,
        buffer_size=100,
        batch_size=32,
        compile=False,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[32, 32]) | policy_kwargs,
        **arguments,
    ).learn(40 + N_UPDATES)
    assert model._n_updates == N_UPDATES
    found = dict(model.policy.state_dict())
    for network in ("actor", "critic", "behavior_critic", "behavior_value"):
        for index, state in getattr(model, network).optimizer.state_dict()["state"].items():
            found |= {f"{network}.optimizer.{index}.{key}": th.as_tensor(value) for key, value in state.items()}
    if model.log_spread_coef is not None:
        found["log_spread_coef"] = model.log_spread_coef.detach()
    return found


def main() -> None:
    """Do what the command line says."""
    command, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    found = {name: train(name) for name in CONFIGURATIONS}
    if command == "record":
        th.save(found, path)
        return
    expected = th.load(path)
    n_different = 0
    for name, tensors in found.items():
        different = [key for key in expected[name] if not th.equal(expected[name][key], tensors[key])]
        n_different += bool(different) or tensors.keys() != expected[name].keys()
        print(f"{name}: {f'differs in {different[:3]}' if different else f'{len(tensors)} tensors are the same'}")
    sys.exit(1 if n_different else 0)


if __name__ == "__main__":
    main()
