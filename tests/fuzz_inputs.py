"""Environments, networks and functions that tests/fuzz.py hands to FlowRL, good ones and bad ones."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class OutsideError(Exception):
    """An action was played that the action space does not contain."""


class UsersError(Exception):
    """What the user's own function raises. It should reach the user as it is."""


# --------------------------------------------------------------------------------------------------------------- spaces


class NamedBox(spaces.Box):
    """A class of the user's own, with something that its features extractor asks for."""

    name = "sensor"


class NamedDict(spaces.Dict):
    name = "sensors"


def sample(space: spaces.Space, rng: np.random.Generator) -> Any:
    """Draw from a space by another generator than its own, which a checkpoint would not hold."""
    if isinstance(space, spaces.Dict):
        return {key: sample(part, rng) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        return rng.integers(space.low, space.high, endpoint=True, dtype=space.dtype)  # type: ignore[arg-type]
    if isinstance(space, spaces.Box):
        return np.asarray(rng.uniform(np.maximum(space.low, -1), np.minimum(space.high, 1)), dtype=space.dtype)
    if isinstance(space, spaces.Discrete):
        return space.start + rng.integers(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start + rng.integers(space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=space.shape, dtype=np.int8)
    return space.sample()


# --------------------------------------------------------------------------------------------------------- environments

#: What a faulty environment returns from some step on
QUIRKS = (
    "reward nan",
    "reward inf",
    "reward None",
    "reward text",
    "reward array of one",
    "reward array of two",
    "reward tensor",
    "reward float32",
    "reward bool",
    "observation nan",
    "observation of another shape",
    "observation of another type",
    "observation None",
    "done int",
    "done None",
    "info None",
    "four values",
    "error",
    "reset without info",
)


class RandomEnv(gym.Env):
    """
    Random observations, and rewards for small actions.

    :param observation_space: Observation space
    :param action_space: Action space
    :param length: steps of an episode
    :param terminates: whether an episode ends by itself, or by a time-out
    :param quirk: what goes wrong, one of QUIRKS
    :param quirk_from: at which step of this environment it begins
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        length: int = 5,
        terminates: bool = True,
        quirk: str | None = None,
        quirk_from: int = 0,
    ):
        self.observation_space, self.action_space = observation_space, action_space
        self.length, self.terminates = length, terminates
        self.quirk, self.quirk_from, self.total_steps = quirk, quirk_from, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        observation = sample(self.observation_space, self.np_random)
        return observation if self.active_quirk() == "reset without info" else (observation, {})

    def active_quirk(self) -> str | None:
        return self.quirk if self.total_steps >= self.quirk_from else None

    def step(self, action: Any) -> Any:
        if isinstance(self.action_space, spaces.Box) and not (
            np.shape(action) == self.action_space.shape
            and (action >= self.action_space.low).all()
            and (action <= self.action_space.high).all()
        ):
            raise OutsideError(f"{action!r} is not in {self.action_space}")
        self.steps += 1
        self.total_steps += 1
        observation = sample(self.observation_space, self.np_random)
        reward: Any = float(self.np_random.normal() - np.square(action).mean())
        ends = self.steps >= self.length
        return self.with_quirk(observation, reward, ends and self.terminates, ends and not self.terminates)

    def with_quirk(self, observation: Any, reward: float, terminated: Any, truncated: Any) -> Any:
        info: Any = {}
        kind, _, what = (self.active_quirk() or "").partition(" ")
        result: Any = reward
        if kind == "reward":
            result = {
                "nan": np.nan,
                "inf": np.inf,
                "None": None,
                "text": "1.0",
                "array of one": np.array([reward]),
                "array of two": np.array([reward, reward]),
                "tensor": th.tensor(reward),
                "float32": np.float32(reward),
                "bool": True,
            }[what]
        elif kind == "observation":
            observation = change_first(observation, what)
        elif kind == "done":
            terminated = None if what == "None" else int(terminated)
        elif kind == "info":
            info = None
        elif kind == "four":
            return observation, result, terminated or truncated, info
        elif kind == "error":
            raise UsersError("the environment's own")
        return observation, result, terminated, truncated, info


def change_first(observation: Any, what: str) -> Any:
    if isinstance(observation, dict):
        key = next(iter(observation))
        return {**observation, key: change_first(observation[key], what)}
    array = np.asarray(observation)
    if what == "nan":
        return np.full(array.shape, np.nan) if np.issubdtype(array.dtype, np.floating) else array
    if what == "of another shape":
        return np.zeros((*array.shape, 2), dtype=array.dtype)
    return None if what == "None" else array.astype(np.float64).tolist()


class GoalEnv(RandomEnv):
    """For hindsight experience replay."""

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> np.ndarray:
        return -np.linalg.norm(np.asarray(achieved_goal) - desired_goal, axis=-1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- networks


class Sum(BaseFeaturesExtractor):
    """
    A learned extractor that can do something wrong.

    :param observation_space: Observation space, of one part
    :param fault: what it does wrong
    """

    def __init__(self, observation_space: spaces.Space, fault: str = ""):
        size = int(np.prod(observation_space.shape or (1,)))
        super().__init__(observation_space, 0 if fault == "no features" else 3)
        self.fault = fault
        self.linear: nn.Module = nn.LazyLinear(3) if fault == "lazy" else nn.Linear(size, 3)
        self.dropout = nn.Dropout(0.5 if fault == "dropout" else 0.0)
        self.unused = nn.Linear(2, 2)
        if fault == "frozen":
            self.requires_grad_(False)

    def forward(self, observations: th.Tensor) -> Any:
        flat = observations.flatten(start_dim=1)
        features = self.dropout(self.linear(flat.float()))
        if self.fault == "too many":
            return th.cat([features, features], dim=1)
        if self.fault == "too few dimensions":
            return features.sum(dim=1)
        if self.fault == "numpy":
            return features.detach().cpu().numpy()
        if self.fault == "None":
            return None
        if self.fault == "float64":
            return features.double()
        if self.fault == "detached":
            return features.detach()
        if self.fault == "nan":
            return features * np.nan
        if self.fault == "in place":
            return self.linear(flat.float().mul_(0.5))
        if self.fault == "infinite slope":
            return (features * (features > 0)).sqrt()
        if self.fault == "error":
            raise UsersError("the extractor's own")
        return features


#: Of these the first four are no faults
EXTRACTOR_FAULTS = (
    *("", "frozen", "detached", "dropout"),
    *(
        "in place",
        "no features",
        "lazy",
        "too many",
        "too few dimensions",
        "numpy",
        "None",
        "float64",
        "nan",
        "infinite slope",
        "error",
    ),
)


class OfNamedSpace(BaseFeaturesExtractor):
    """An extractor that asks for what only the user's own class of space has, and takes Dicts in the environment's order."""

    def __init__(self, observation_space: spaces.Space):
        assert observation_space.name.startswith("sensor")  # type: ignore[attr-defined]
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        super().__init__(observation_space, sum(int(np.prod(part.shape or ())) for part in parts.values()))

    def forward(self, observations: Any) -> th.Tensor:
        parts = observations.values() if isinstance(observations, dict) else [observations]
        return th.cat([part.flatten(start_dim=1).float() for part in parts], dim=1)


class WithoutInit(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space):
        pass

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations


class WithoutForward(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)


class NeedsArguments(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space, size: int, depth: int):
        super().__init__(observation_space, size)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations


class InfiniteSlope(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return (x * (x > 0)).sqrt()


class Narrowing(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return x[..., :1]


class NotFinite(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return x / 0


class NoTensor(nn.Module):
    def forward(self, x: th.Tensor) -> Any:
        return x.tolist()


class Doubling(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return x.double()


class Raising(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        raise UsersError("the activation's own")


class OwnSGD(th.optim.Optimizer):
    """An optimizer of the user's own, the plainest possible."""

    def __init__(self, params: Any, lr: float = 1e-3):
        super().__init__(params, dict(lr=lr))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with th.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad.clamp(-1, 1), alpha=group["lr"])


class NeedsClosure(OwnSGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


# ------------------------------------------------------------------------------------------------------------ functions


class Schedule:
    """
    A learning rate that is as it should be for the first third.

    :param late: what it returns then
    """

    def __init__(self, late: Any):
        self.late = late

    def __call__(self, progress_remaining: float) -> Any:
        if progress_remaining > 0.67:
            return 1e-3
        if isinstance(self.late, UsersError):
            raise self.late
        return self.late


class Guidance:
    """
    :param returns: what kind of value the weights are
    """

    def __init__(self, returns: str = ""):
        self.returns = returns

    def __call__(self, q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> Any:
        weights = th.sigmoid(q_behavior - q_policy) * w2_coef
        if self.returns == "in place":
            return q_behavior.sub_(q_policy).sigmoid_().mul_(w2_coef)
        if self.returns == "error":
            raise UsersError("the guidance's own")
        return {
            "": lambda: weights,
            "numpy": lambda: weights.detach().numpy(),
            "float": lambda: 0.5,
            "float64": lambda: weights.double(),
            "float16": lambda: weights.half(),
            "bool": lambda: q_behavior > q_policy,
            "int": lambda: (q_behavior > q_policy).long(),
            "squeezed": lambda: weights.squeeze(1),
            "wide": lambda: weights.expand(-1, 2),
            "mean": lambda: weights.mean(),
            "nan": lambda: weights * np.nan,
            "inf": lambda: weights + np.inf,
            "negative": lambda: -weights,
            "complex": lambda: weights + 1j,
            "None": lambda: None,
            "list": lambda: weights.tolist(),
            "gradient": lambda: weights.clone().requires_grad_(),
        }[self.returns]()


#: Of these the first four are no faults
GUIDANCE_RETURNS = (
    *("", "negative", "gradient", "in place"),
    *(
        "numpy",
        "float",
        "float64",
        "float16",
        "bool",
        "int",
        "squeezed",
        "wide",
        "mean",
        "nan",
        "inf",
        "complex",
        "None",
        "list",
    ),
    "error",
)


class OddNoise(ActionNoise):
    """
    :param value: what it returns
    """

    def __init__(self, value: Any):
        super().__init__()
        self.value = value

    def __call__(self) -> Any:
        if isinstance(self.value, UsersError):
            raise self.value
        return self.value


def normal_noise(shape: tuple[int, ...], sigma: float = 0.1) -> NormalActionNoise:
    return NormalActionNoise(np.zeros(shape), np.full(shape, sigma))


class WithoutReplacement(ReplayBuffer):
    """Returns fewer transitions than asked for while it holds fewer."""

    def sample(self, batch_size: int, env: Any = None) -> Any:
        n = min(batch_size, self.size())
        return self._get_samples(np.random.permutation(self.size())[:n], env=env)


class WithDemonstrations(ReplayBuffer):
    def sample(self, batch_size: int, env: Any = None) -> Any:
        return self._get_samples(np.concatenate([np.random.randint(self.size(), size=batch_size), [0, 0]]), env=env)


class OddBuffer(ReplayBuffer):
    """
    :param fault: what is wrong with its samples
    """

    def __init__(self, *args: Any, fault: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fault = fault

    def sample(self, batch_size: int, env: Any = None) -> Any:
        batch: Any = super().sample(batch_size, env=env)
        if self.fault == "None":
            return None
        if self.fault == "tuple":
            return tuple(batch)
        if self.fault == "numpy":
            return batch._replace(rewards=batch.rewards.numpy())
        if self.fault == "float64":
            return batch._replace(rewards=batch.rewards.double())
        if self.fault == "flat":
            return batch._replace(rewards=batch.rewards.flatten())
        if self.fault == "empty":
            return type(batch)(*(None if part is None else part[:0] for part in batch))
        if self.fault == "error":
            raise UsersError("the buffer's own")
        return batch


BUFFER_FAULTS = ("", "None", "tuple", "numpy", "float64", "flat", "empty", "error")
