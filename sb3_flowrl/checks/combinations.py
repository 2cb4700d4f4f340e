"""Check what must fit together: arguments, environments and the replay buffer."""

import warnings
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checks.arguments import ALGORITHM_CHECKS, check_arguments, plain_number


def check_model(model: OffPolicyAlgorithm) -> None:
    """
    Check the arguments of a model before its networks are made.

    Its numbers are converted to Python's own types, and the action noise of a loaded model is fitted to its environments.

    :param model: the model; ``load`` may have changed its attributes
    :raises ValueError: for the first argument that is not allowed
    """
    arguments = vars(model)
    # `policy` holds the networks by now, if they are made anew
    check_arguments({name: check for name, check in ALGORITHM_CHECKS.items() if name != "policy"}, arguments)
    arguments.update({name: plain_number(arguments[name]) for name in ALGORITHM_CHECKS if name in arguments})
    check_combination(model.observation_space, model.n_steps, model.optimize_memory_usage)
    check_replay_buffer(model)
    noise = model.action_noise
    if isinstance(noise, VectorizedActionNoise) and noise.n_envs != model.n_envs and model.num_timesteps > 0:
        # A model that has learned in other environments and is loaded: SB3 repeated its noise, and does so again
        model.action_noise = noise.base_noise


def check_combination(observation_space: spaces.Space[Any], n_steps: int, optimize_memory_usage: bool) -> None:
    """
    Check arguments that are allowed separately but not together.

    :param observation_space: the environment's observation space
    :param n_steps: as given to ``FlowRL``
    :param optimize_memory_usage: as given to ``FlowRL``
    :raises ValueError: if two of them are not supported together
    """
    if isinstance(observation_space, spaces.Dict):
        for name, value, off in (("n_steps", n_steps, 1), ("optimize_memory_usage", optimize_memory_usage, False)):
            if value != off:
                raise ValueError(
                    f"{name}={value} is not supported with Dict observations. Leave it at {off}, or flatten them."
                )
    if optimize_memory_usage and n_steps > 1:
        raise ValueError(f"optimize_memory_usage=True is not supported with n_steps={n_steps}. Choose one of them.")


def check_replay_buffer(model: OffPolicyAlgorithm) -> None:
    """
    Check that the chosen replay buffer suits the environment.

    :param model: a model whose replay buffer has not been made yet
    :raises ValueError: if it does not suit the environment
    """
    if model.env is not None and model.optimize_memory_usage and model.buffer_size // model.n_envs < 2:
        raise ValueError(
            f"optimize_memory_usage=True needs room for two transitions of each environment, but buffer_size="
            f"{model.buffer_size} with n_envs={model.n_envs} has less. Make it at least {2 * model.n_envs}."
        )
    buffer_class = model.replay_buffer_class
    if buffer_class is None:
        return
    is_ours = buffer_class.__module__.startswith(("sb3_flowrl.", "stable_baselines3."))
    if isinstance(model.observation_space, spaces.Dict) and is_ours and not issubclass(buffer_class, DictReplayBuffer):
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__} can't hold Dict observations. Leave it at None, which takes "
            "DictReplayBuffer, or flatten the observations with gymnasium.wrappers.FlattenObservation."
        )
    if not issubclass(buffer_class, HerReplayBuffer):
        return
    keys = ("observation", "achieved_goal", "desired_goal")
    space = model.observation_space
    if not isinstance(space, spaces.Dict) or not {*keys} <= space.spaces.keys():
        raise ValueError(
            f"replay_buffer_class={buffer_class.__name__} needs Dict observations with the keys {keys}, but the "
            f"observation space is {space}. Use an environment with goals, or another replay buffer."
        )


def check_train_freq(n_envs: int, train_freq: Any) -> None:
    """
    Check that ``train_freq`` does not count the episodes of several environments.

    A model with such settings can predict, but not learn.

    :param n_envs: number of environments
    :param train_freq: as given to ``FlowRL``
    :raises ValueError: if it does
    """
    unit = train_freq[1] if isinstance(train_freq, (tuple, TrainFreq)) else "step"
    if n_envs > 1 and getattr(unit, "value", unit) == "episode":
        raise ValueError(
            f"train_freq={train_freq} counts episodes, which is only supported with one environment, but "
            f"n_envs={n_envs}. Count steps instead, such as train_freq=(1, 'step')."
        )


def check_returns(gamma: float, n_steps: int, replay_buffer: ReplayBuffer | None) -> None:
    """
    Check that a replay buffer makes the n-step returns that the model asks for, since it discounts them itself.

    :param gamma: as given to ``FlowRL``
    :param n_steps: as given to ``FlowRL``; 1 also allows a buffer of n-step returns
    :param replay_buffer: the replay buffer
    :raises ValueError: if its discount factor or its number of steps differs
    """
    steps_of_buffer = getattr(replay_buffer, "n_steps", 1)
    of_buffer = getattr(replay_buffer, "gamma", gamma)
    if of_buffer != gamma:
        raise ValueError(
            f"The replay buffer discounts its {steps_of_buffer}-step returns by gamma={of_buffer}, but the model has "
            f"gamma={gamma}. Use the same for both: replay_buffer_kwargs=dict(n_steps={steps_of_buffer}, gamma={gamma})."
        )
    if n_steps > 1 and steps_of_buffer != n_steps:
        raise ValueError(
            f"The replay buffer makes {steps_of_buffer}-step returns, but the model has n_steps={n_steps}. Use the same for "
            f"both. In load, pass replay_buffer_kwargs=dict(n_steps={n_steps}, gamma={gamma}) as well."
        )


def warn_of_no_update(model: OffPolicyAlgorithm) -> None:
    """
    Warn that a call of ``learn`` ended before the first update.

    :param model: a model that made no update in this call
    """
    if model.num_timesteps <= model.learning_starts:
        warnings.warn(
            f"No update was made: learn() ended at step {model.num_timesteps}, and the updates begin after "
            f"learning_starts={model.learning_starts} steps of the model. Train for longer, or pass a smaller value, as in "
            f"{type(model).__name__}(..., learning_starts={min(100, max(model.num_timesteps // 10, 0))})."
        )
