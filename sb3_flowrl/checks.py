"""
Checks of what users and environments hand in, each with an error that says what was wrong and what to do.
"""

import difflib
import math
import numbers
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from torch import nn


class UnsupportedActionSpaceError(ValueError, AssertionError):
    """
    The environment's action space is not a bounded Box. Also an ``AssertionError``, which is what SB3's own algorithms raise.
    """


class UnsupportedObservationSpaceError(ValueError, AssertionError):
    """
    The policy can't work with the observation space. Also an ``AssertionError``, which is what SB3's own policies raise.
    """


def check_action_space(action_space: spaces.Space) -> None:
    """
    :param action_space: the environment's action space
    :raises UnsupportedActionSpaceError: if it is not a ``Box`` of floating-point numbers with finite bounds, low below high
    """
    if not isinstance(action_space, spaces.Box):
        raise UnsupportedActionSpaceError(
            f"FlowRL only supports continuous actions (a gymnasium Box), but the environment's action space is "
            f"{action_space}. For discrete actions use an algorithm such as stable_baselines3.DQN or sb3_contrib.QRDQN."
        )
    low, high = np.asarray(action_space.low), np.asarray(action_space.high)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UnsupportedActionSpaceError(
            f"The environment's continuous action space must have finite bounds, but it is {action_space} with "
            f"low={low} and high={high}. Wrap the environment in gymnasium.wrappers.RescaleAction, or give the space bounds."
        )
    if action_space.dtype not in (np.float16, np.float32, np.float64):
        raise UnsupportedActionSpaceError(
            f"The environment's action space {action_space} is not one of floating-point numbers, so that actions scaled to "
            "[-1, 1] could not be stored. Give it dtype=np.float32, and let the environment round."
        )
    if action_space.shape is not None and 0 in action_space.shape:
        raise UnsupportedActionSpaceError(f"The environment's action space {action_space} holds no action at all.")
    with np.errstate(over="ignore"):
        if not np.isfinite(high - low).all():
            raise UnsupportedActionSpaceError(
                f"The bounds of the environment's action space {action_space} are so far apart that high - low is infinite. "
                "Wrap the environment in gymnasium.wrappers.RescaleAction."
            )
    if not (low < high).all():
        raise UnsupportedActionSpaceError(
            f"Every dimension of the action space must have low < high, but low={low} and high={high}. "
            "Leave out the dimensions that can't be acted on."
        )


def check_positive_int(name: str, value: Any) -> None:
    """
    :param name: the argument's name, for the message
    :param value: what the user gave
    :raises ValueError: if it is not an integer of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


def check_choice(name: str, value: Any, choices: Collection[str], or_else: str = "") -> None:
    """
    :param name: the argument's name, for the message
    :param value: what the user gave
    :param choices: the values that are allowed
    :param or_else: what else the argument may be, for the message
    :raises ValueError: if the value is not one of the choices
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}{or_else}.")


def check_number(name: str, value: Any, is_valid: Callable[[float], bool], description: str) -> None:
    """
    :param name: the argument's name, for the message
    :param value: what the user gave
    :param is_valid: whether a real number is allowed
    :param description: what the value must be, for the message
    :raises ValueError: if the value is not a real number, or not allowed
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not is_valid(float(value)):
        raise ValueError(f"{name}={value!r} must be {description}.")


def whole_number(name: str, value: Any, at_least: int | None = 0) -> int:
    """
    Accept ``1e6`` where ``1_000_000`` is meant.

    :param name: the argument's name, for the message
    :param value: an integer, or a float that is a whole number
    :param at_least: the smallest number that is allowed, if there is one
    :return: the value as an integer
    :raises ValueError: for anything else, and for a smaller number
    """
    if isinstance(value, (float, np.floating)) and math.isfinite(value) and value == int(value):
        value = int(value)
    try:
        if isinstance(value, bool) or (at_least is not None and operator.index(value) < at_least):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be a whole number of steps, such as 1_000_000 or 1e6.") from None


def check_keywords(function_name: str, keywords: Collection[str], known: Collection[str]) -> None:
    """
    :param function_name: the name of the function, for the message
    :param keywords: the names of the keyword arguments that it was given
    :param known: those that it takes
    :raises TypeError: naming one that it does not take, and the most similar one that it does
    """
    for name in keywords:
        if name not in known:
            similar = difflib.get_close_matches(str(name), [each for each in known if not each.startswith("_")], n=1)
            hint = f" Did you mean {similar[0]!r}?" if similar else ""
            raise TypeError(f"{function_name}() got an unexpected keyword argument {name!r}.{hint}")


def learning_rate_of(schedule: Callable[[float], Any], progress_remaining: float) -> float:
    """
    What a schedule returns may be anything that ``float`` takes, such as a tensor, but not text.

    :param schedule: the function given as learning_rate
    :param progress_remaining: from 1, the start of learning, to 0, its end
    :return: the learning rate
    :raises ValueError: if the schedule returns something else than a finite number of at least 0
    """
    try:
        returned = schedule(progress_remaining)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # from within the schedule, which is to tell of its errors itself
        raise ValueError(
            f"learning_rate={schedule} can't be called with the remaining progress (from 1 to 0) as its argument: {error}."
        ) from error
    try:
        learning_rate = math.nan if isinstance(returned, (bool, np.bool_, str, bytes)) else float(returned)
    except (TypeError, ValueError, RuntimeError):  # the last by tensors of several elements
        learning_rate = math.nan
    if not 0.0 <= learning_rate < math.inf:
        raise ValueError(
            f"The schedule given as learning_rate returned {returned!r} for progress_remaining={progress_remaining}. It must "
            "return a finite number of at least 0, from 1 (the start of learning) to 0 (its end)."
        )
    return learning_rate


def check_not_diverged(terms: Mapping[str, Sequence[float]], diverged: bool, updates: range, num_timesteps: int) -> None:
    """
    Say that a loss or a gradient has exploded.

    :param terms: the values of each logged term in the updates of one call of ``train``, by name
    :param diverged: whether a loss or a gradient of these updates was not finite
    :param updates: the numbers of these updates, for the message
    :param num_timesteps: environment steps done so far, for the message
    :raises ValueError: naming the losses that are not finite, and what they are
    """
    if not diverged:
        return
    losses = {name: values for name, values in terms.items() if name.endswith("_loss")}
    bad = {name: [value for value in values if not math.isfinite(value)] for name, values in losses.items()}
    shown = ", ".join(f"{len(bad[name])} of {len(losses[name])} of {name} ({bad[name][0]})" for name in bad if bad[name])
    which = f"of updates {updates.start + 1} to {updates.stop} (environment step {num_timesteps})"
    raise ValueError(
        f"Training has diverged: of the losses {which}, {shown} are not finite. No network took a step from such a loss; what "
        "was learned before can still be saved. Try a lower learning_rate, smaller gamma or rewards (VecNormalize), and look "
        "at what train/q_policy and train/q_behavior did before in the log."
        if shown
        else f"Training has diverged: a gradient {which} is not finite, although all losses are. No network took a step from "
        "it; what was learned before can still be saved. Look for an operation whose derivative is infinite, such as a square "
        "root at 0, in activation_fn, the features extractor or guidance. Otherwise try a lower learning_rate, or "
        "smaller rewards (VecNormalize)."
    )


def check_finite_actions(actions: np.ndarray, policy: nn.Module) -> None:
    """
    Stop before an action that is not finite is played.

    :param actions: what the policy, and perhaps action noise, made
    :param policy: the policy, for the message
    :raises ValueError: saying how many values are not finite, and whether the networks are to blame
    """
    if np.isfinite(actions).all():
        return
    bad = np.asarray(actions)[~np.isfinite(actions)]
    parameters = [name for name, parameter in policy.named_parameters() if not parameter.isfinite().all()]
    cause = (
        f"The parameters of the policy are not finite, the first of {len(parameters)} being {parameters[0]}: go back to a "
        "model that was saved before, and try a lower learning_rate."
        if parameters
        else "The parameters of the policy are finite, so look at the observations (VecCheckNan finds where they arise) and "
        "at action_noise."
    )
    raise ValueError(f"The action holds {bad.size} value(s) that are not finite, the first being {bad[0]}. {cause}")


def check_finite_batch(batch: ReplayBufferSamples | DictReplayBufferSamples, n_updates: int, num_timesteps: int) -> None:
    """
    Stop before NaN or infinite data from the environment reaches the networks, which they would never recover from.

    :param batch: the samples of one update or of several
    :param n_updates: updates done so far, for the message
    :param num_timesteps: environment steps done so far, for the message
    :raises ValueError: naming the first tensor that holds a value that is not finite
    """
    for name, values in batch._asdict().items():
        tensors = {f"{name}[{key!r}]": value for key, value in values.items()} if isinstance(values, dict) else {name: values}
        for full_name, tensor in tensors.items():
            if tensor is None or not tensor.is_floating_point() or _is_finite(tensor):
                continue
            bad = tensor[~th.isfinite(tensor)].flatten()
            cause = (
                "the policy itself: its networks have diverged (try a lower learning_rate), or action_noise is not finite"
                if name == "actions"
                else "the environment (wrap it in stable_baselines3.common.vec_env.VecCheckNan to catch it at the step where "
                "it arises)"
            )
            raise ValueError(
                f"`{full_name}` of the replay sample for update {n_updates} (environment step {num_timesteps}) holds "
                f"{bad.numel()} value(s) that are not finite, the first being {bad[0].item()}. The networks were not "
                f"touched by it. Look for the cause in {cause}."
            )


def _is_finite(tensor: th.Tensor) -> bool:
    # A sum that is finite has finite terms only, and is many times faster; one that is not may just have overflowed
    return math.isfinite(tensor.sum().item()) or bool(th.isfinite(tensor).all())
