"""
A trial update on made-up data, so that arguments that can't work raise an error before the first environment step.
"""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples

from sb3_flowrl.buffers import Batch
from sb3_flowrl.execution import own_random_numbers
from sb3_flowrl.guidance import GuidanceError

if TYPE_CHECKING:
    from sb3_flowrl.flowrl import FlowRL

#: Number of transitions in the trial batch, unless the guidance is a function of the user's, which may read all of them.
N_ROWS = 4


def try_out(model: "FlowRL") -> None:
    """
    Draw action noise and take one gradient step, both on copies.

    The model and all random numbers stay as they are.

    :param model: a model whose networks and replay buffer have been made
    :raises ValueError: if that fails; the message says why, and which arguments to look at
    """
    with own_random_numbers(0, model.device):
        check_action_noise(model)
        try:
            trial = copy_of(model)
        except Exception:  # a custom part that can't be copied may still be trained
            return
        try:
            trial.policy.set_training_mode(True)
            trial._gradient_step(make_batch(model), True, th.zeros((), device=model.device, dtype=th.float32))
        except GuidanceError:  # its message is enough
            raise
        except Exception as error:
            raise ValueError(
                f"An update fails with {type(error).__name__}: {error}\nOne of these arguments does not work: "
                f"guidance={model.guidance!r}, policy_kwargs={model.policy_kwargs!r} (look first at optimizer_class, "
                "optimizer_kwargs, activation_fn and features_extractor_class)."
            ) from error


def copy_of(model: "FlowRL") -> "FlowRL":
    """
    Copy what an update changes.

    :param model: the model
    :return: a model with copies of the networks and optimizers that shares everything else
    """
    copied = copy.copy(model)
    copied.policy, copied.compile = copy.deepcopy(model.policy), False
    copied.guidance = copy.deepcopy(model.guidance)  # a class of the user's own may keep a state
    copied._create_aliases()
    copied._setup_spread_coef()
    for ours, theirs in zip(model._optimizers(), copied._optimizers(), strict=True):
        # PyTorch's optimizers are copied without the attributes that a subclass adds
        vars(theirs).update({name: copy.deepcopy(value) for name, value in vars(ours).items() if name not in vars(theirs)})
    return copied


def check_action_noise(model: "FlowRL") -> None:
    """
    Draw action noise once, and check its shape.

    :param model: the model
    :raises ValueError: if the noise can't be drawn, or can't be added to the actions of all environments
    """
    if model.action_noise is None:
        return
    noise, n_envs, shape = copy.deepcopy(model.action_noise), model.n_envs, model.action_space.shape
    is_vector = isinstance(noise, VectorizedActionNoise)
    if n_envs > 1 and not is_vector:
        noise = VectorizedActionNoise(noise, n_envs)  # as SB3 does
    try:
        drawn = noise()
    except Exception as error:
        raise ValueError(f"action_noise={model.action_noise} fails with {type(error).__name__}: {error}") from error
    actions = np.zeros((n_envs, *(shape or ())))
    try:
        fits = np.shape(actions + drawn) == np.shape(actions)
    except (ValueError, TypeError):  # NumPy can't add them
        fits = False
    if not fits:
        remedy = (
            "Pass the noise of one environment: it is repeated" if is_vector else f"Give it mean and sigma of shape {shape}"
        )
        raise ValueError(
            f"action_noise={model.action_noise} has the shape {np.shape(drawn)}, which can't be added to the actions of "
            f"{n_envs} environment(s) of shape {shape}. {remedy}."
        )


def make_batch(model: "FlowRL") -> Batch:
    """
    Make up a replay sample.

    :param model: the model
    :return: transitions, all zeros where the observation space allows it
    """
    assert model.replay_buffer is not None
    space = copy.deepcopy(model.replay_buffer.observation_space)
    space.seed(0)
    n_rows = model.batch_size if callable(model.guidance) else N_ROWS
    column = th.zeros(n_rows, 1, device=model.device, dtype=th.float32)
    sample_class: Any = DictReplayBufferSamples if isinstance(space, spaces.Dict) else ReplayBufferSamples
    return sample_class(
        observations=_make_observations(space, n_rows, model.device),
        actions=column.expand(-1, model.actor.action_dim).contiguous(),
        next_observations=_make_observations(space, n_rows, model.device),
        dones=column,
        rewards=column,
        discounts=column,
    )


def _make_observations(space: spaces.Space[Any], n_rows: int, device: th.device) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _make_observations(part, n_rows, device) for key, part in space.items()}
    if isinstance(space, spaces.Box):
        # Of an unbounded space nobody knows which values occur. Zeros suit most networks, also those that look up an index
        made = np.stack([np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)] * n_rows)
    else:
        made = np.stack([np.asarray(space.sample()) for _ in range(n_rows)])
    return th.as_tensor(made.reshape(n_rows, -1) if made.ndim == 1 else made, device=device)
