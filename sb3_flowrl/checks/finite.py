"""Check that learning rates, samples, actions and losses are finite."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from torch import nn


def learning_rate_of(schedule: Callable[[float], Any], progress_remaining: float) -> float:
    """
    Call a learning-rate schedule and check its value.

    A schedule may return anything that ``float`` accepts, such as a tensor, but not text.

    :param schedule: the function given as learning_rate
    :param progress_remaining: from 1, the start of learning, to 0, its end
    :return: the learning rate
    :raises ValueError: if the schedule does not return a finite number of at least 0
    """
    try:
        # The last rollout may go beyond the end, where a linear schedule would give a negative learning rate
        returned = schedule(max(progress_remaining, 0.0))
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # the error comes from inside the schedule
        raise ValueError(
            f"learning_rate={schedule} can't be called with the remaining progress (from 1 to 0) as its argument: {error}."
        ) from error
    try:
        learning_rate = math.nan if isinstance(returned, (bool, np.bool_, str, bytes)) else float(returned)
    except (TypeError, ValueError, RuntimeError):  # tensors of several elements raise the last
        learning_rate = math.nan
    if not 0.0 <= learning_rate < math.inf:
        raise ValueError(
            f"The schedule given as learning_rate returned {returned!r} for progress_remaining={progress_remaining}. It must "
            "return a finite number of at least 0, from 1 (the start of learning) to 0 (its end)."
        )
    return learning_rate


def check_not_diverged(terms: Mapping[str, Sequence[float]], diverged: bool, updates: range, num_timesteps: int) -> None:
    """
    Raise an error if a loss or a gradient has exploded.

    :param terms: the values of each logged term in the updates of one call of ``train``, by name
    :param diverged: whether a loss or a gradient of these updates was not finite
    :param updates: the numbers of these updates, for the message
    :param num_timesteps: environment steps done so far, for the message
    :raises ValueError: if ``diverged``; the message names the losses that are not finite, with a value of each
    """
    if not diverged:
        return
    losses = {name: values for name, values in terms.items() if name.endswith("_loss")}
    bad = {name: [value for value in values if not math.isfinite(value)] for name, values in losses.items()}
    bad_losses = ", ".join(
        f"{len(bad[name])} of {len(losses[name])} values of {name} ({bad[name][0]})" for name in bad if bad[name]
    )
    of_updates = f"of updates {updates.start + 1} to {updates.stop} (environment step {num_timesteps})"
    raise ValueError(
        f"Training has diverged. Losses {of_updates} are not finite: {bad_losses}. No network took a step from such a loss, "
        "so the model can still be saved. Try a lower learning_rate, a smaller gamma or smaller rewards (VecNormalize), and "
        "look in the log at how train/q_policy and train/q_behavior changed before."
        if bad_losses
        else f"Training has diverged. A gradient {of_updates} is not finite, although all losses are finite. No network took "
        "a step from it, so the model can still be saved. Look for an operation with an infinite derivative, such as a square "
        "root at 0, in activation_fn, the features extractor or guidance. Otherwise try a lower learning_rate or smaller "
        "rewards (VecNormalize)."
    )


def check_finite_actions(actions: np.ndarray, policy: nn.Module) -> None:
    """
    Check that actions are finite before they are played.

    :param actions: the actions of the policy, perhaps with action noise
    :param policy: the policy, for the message
    :raises ValueError: if a value is not finite; the message says how many are not, and whether the networks are the cause
    """
    if np.isfinite(actions).all():
        return
    bad = np.asarray(actions)[~np.isfinite(actions)]
    parameters = [name for name, parameter in policy.named_parameters() if not parameter.isfinite().all()]
    cause = (
        f"{len(parameters)} parameter(s) of the policy are not finite; the first is {parameters[0]}. Load a model that was "
        "saved earlier, and try a lower learning_rate."
        if parameters
        else "The parameters of the policy are finite, so check the observations (VecCheckNan finds the step at which they "
        "stop being finite) and action_noise."
    )
    raise ValueError(f"The action holds {bad.size} value(s) that are not finite; the first is {bad[0]}. {cause}")


def check_finite_batch(batch: ReplayBufferSamples | DictReplayBufferSamples, n_updates: int, num_timesteps: int) -> None:
    """
    Check that a sample is finite before it reaches the networks, which would never recover from NaN or infinite values.

    :param batch: the samples of one update or of several
    :param n_updates: updates done so far, for the message
    :param num_timesteps: environment steps done so far, for the message
    :raises ValueError: if a value is not finite; the message names the first tensor that holds one
    """
    for name, values in batch._asdict().items():
        tensors = {f"{name}[{key!r}]": value for key, value in values.items()} if isinstance(values, dict) else {name: values}
        for full_name, tensor in tensors.items():
            if tensor is None or not tensor.is_floating_point() or _is_finite(tensor):
                continue
            bad = tensor[~th.isfinite(tensor)].flatten()
            cause = (
                "the policy: its networks have diverged (try a lower learning_rate), or action_noise is not finite"
                if name == "actions"
                else "the environment (wrap it in stable_baselines3.common.vec_env.VecCheckNan to find the step at which it "
                "occurs)"
            )
            raise ValueError(
                f"`{full_name}` of the replay sample for update {n_updates} (environment step {num_timesteps}) holds "
                f"{bad.numel()} value(s) that are not finite; the first is {bad[0].item()}. This sample has not "
                f"reached the networks. Look for the cause in {cause}."
            )


def _is_finite(tensor: th.Tensor) -> bool:
    # A sum is many times faster, and is finite only if all terms are. But a sum of finite terms may overflow
    return math.isfinite(tensor.sum().item()) or bool(th.isfinite(tensor).all())
