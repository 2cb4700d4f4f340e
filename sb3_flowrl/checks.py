"""
Checks of what users and environments provide.

Each check raises an error that says what is wrong and what to do.
"""

import difflib
import functools
import inspect
import math
import numbers
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np
import torch as th
from gymnasium import Env, spaces
from gymnasium.envs.registration import registry
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, GymEnv, ReplayBufferSamples, TrainFreq
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.her import HerReplayBuffer
from torch import nn

from sb3_flowrl.flow import MATCHING_SPACES, ODE_SOLVERS
from sb3_flowrl.guidance import GUIDANCES

P = ParamSpec("P")

#: Width of an action space from which a warning says what it may do to exploration: that of Isaac Lab's bounds of ±100.
WIDE_BOUNDS = 200.0

#: Arguments of SB3's SAC that FlowRL does not have, and what takes their place.
_ARGUMENTS_OF_SAC = {
    "ent_coef": "FlowRL has no entropy. spread_coef, 'auto' by default, takes its place.",
    "target_entropy": "FlowRL has no entropy. target_spread takes its place.",
    "target_update_interval": "FlowRL updates its targets with its actor, at every policy_delay-th update.",
    "sde_sample_freq": "FlowRL has no gSDE.",
    "use_sde_at_warmup": "FlowRL has no gSDE.",
}

#: Packages whose environments have another interface, and how to train in them.
_OTHER_PACKAGES = {
    "envpool": (
        "is a batch of EnvPool's environments. Wrap it: sb3_flowrl.envs.vector.GymnasiumVecEnv("
        "sb3_flowrl.envs.envpool.EnvPoolVectorEnv(pool))."
    ),
    "mujoco_playground": (
        "is an environment of MuJoCo Playground, whose reset and step are functions of a state. Import sb3_flowrl.envs, and "
        'make it as sb3_flowrl.envs.vector.GymnasiumVecEnv(gymnasium.make_vec("playground/CheetahRun", num_envs=16)).'
    ),
}


class UnsupportedActionSpaceError(ValueError, AssertionError):
    """
    The environment's action space is not a bounded Box.

    It is also an ``AssertionError``, which SB3's own algorithms raise.
    """


class UnsupportedObservationSpaceError(ValueError, AssertionError):
    """
    The policy does not support the observation space.

    It is also an ``AssertionError``, which SB3's own policies raise.
    """


def check_action_space(action_space: spaces.Space[Any]) -> None:
    """
    Check that an action space is supported.

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
            f"low={low} and high={high}. Give it others: "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(-1.0, 1.0, env.action_space.shape))."
        )
    if action_space.dtype not in (np.float16, np.float32, np.float64):
        raise UnsupportedActionSpaceError(
            f"The environment's action space {action_space} does not hold floating-point numbers, so actions scaled to "
            "[-1, 1] can't be stored. Give it dtype=np.float32, and round in the environment."
        )
    if action_space.shape is not None and 0 in action_space.shape:
        raise UnsupportedActionSpaceError(
            f"The environment's action space {action_space} is empty: it has a dimension of size 0."
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(high - low).all():
            raise UnsupportedActionSpaceError(
                f"The bounds of the environment's action space {action_space} are so far apart that high - low is infinite. "
                "Wrap the environment in gymnasium.wrappers.RescaleAction."
            )
    if not (low < high).all():
        raise UnsupportedActionSpaceError(
            f"Every dimension of the action space must have low < high, but low={low} and high={high}. "
            "Remove the dimensions that allow no choice."
        )


def warn_of_wide_bounds(action_space: spaces.Box) -> None:
    """
    Warn about actions whose bounds are so wide that they seem to stand for none.

    :param action_space: the environment's action space, which is supported
    """
    low, high = np.asarray(action_space.low, np.float64), np.asarray(action_space.high, np.float64)
    widest = np.argmax(high - low)
    if (high - low).flat[widest] >= WIDE_BOUNDS:
        warnings.warn(
            f"The bounds of the environment's actions are as wide as {low.flat[widest]:g} to {high.flat[widest]:g}, and "
            "FlowRL's actions spread over all of this range. If the environment needs only a small part of it, learning may "
            "fail. Narrow the bounds: gymnasium.wrappers.TransformAction(env, lambda action: action, "
            "gymnasium.spaces.Box(-1.0, 1.0, env.action_space.shape)). If it needs the whole range, "
            "gymnasium.wrappers.RescaleAction(env, -1.0, 1.0) ends this warning."
        )


def check_positive_int(name: str, value: Any) -> None:
    """
    Check that a value is an integer of at least 1.

    :param name: the argument's name, for the message
    :param value: the user's value
    :raises ValueError: if it is not such an integer
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


def check_choice(name: str, value: Any, choices: Collection[str], or_else: str = "") -> None:
    """
    Check that a value is one of several choices.

    :param name: the argument's name, for the message
    :param value: the user's value
    :param choices: the values that are allowed
    :param or_else: further possibilities, for the message
    :raises ValueError: if the value is not one of the choices
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}{or_else}.")


def check_number(name: str, value: Any, is_valid: Callable[[float], bool], description: str) -> None:
    """
    Check that a value is a real number that is allowed.

    :param name: the argument's name, for the message
    :param value: the user's value
    :param is_valid: a function that says whether a number is allowed
    :param description: the values that are allowed, for the message
    :raises ValueError: if the value is not a real number, or not allowed
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not is_valid(float(value)):
        raise ValueError(f"{name}={value!r} must be {description}.")


def number_of_steps(total_timesteps: Any, is_new_run: bool) -> int:
    """
    Convert the number of steps to learn to an integer, so that ``1e6`` may stand for ``1_000_000``.

    :param total_timesteps: an integer, or a float that is a whole number
    :param is_new_run: whether it must be 0 or more; the rest of a run may be negative, which means that nothing is left
    :return: the number of steps, at least 0
    :raises ValueError: if the value is not a whole number, or too small
    """
    value = total_timesteps
    if isinstance(value, (float, np.floating)) and math.isfinite(value) and value == int(value):
        value = int(value)
    try:
        if isinstance(value, bool) or (is_new_run and operator.index(value) < 0):
            raise TypeError
        return max(0, operator.index(value))
    except TypeError:
        raise ValueError(
            f"total_timesteps={total_timesteps!r} must be a whole number of at least 0, such as 1_000_000 or 1e6."
        ) from None


def check_keywords(function_name: str, keywords: Collection[str], known: Collection[str]) -> None:
    """
    Check that a function accepts keyword arguments.

    :param function_name: the name of the function, for the message
    :param keywords: the names of the arguments passed to it
    :param known: the names that it accepts
    :raises TypeError: for the first unknown name; the message says what takes the place of an argument of SAC, or suggests
        the most similar known name
    """
    for name in keywords:
        if name not in known:
            similar = difflib.get_close_matches(str(name), [each for each in known if not each.startswith("_")], n=1)
            hint = _ARGUMENTS_OF_SAC.get(name) or (f"Did you mean {similar[0]!r}?" if similar else "")
            raise TypeError(f"{function_name}() got an unexpected keyword argument {name!r}. {hint}".rstrip())


def explain_unknown_arguments(constructor: Callable[P, None]) -> Callable[P, None]:
    """
    Let a constructor check the names of its arguments, see :func:`check_keywords`.

    :param constructor: the ``__init__`` of a class
    :return: the same with the check
    """
    known = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        check_keywords(type(args[0]).__name__, kwargs, known)
        constructor(*args, **kwargs)

    return checked


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


#: Allowed values of ``precision``.
PRECISIONS = ("auto", "float32", "float32_fast", "bfloat16")
#: Allowed values of ``critic_layout``.
CRITIC_LAYOUTS = ("mlp", "reference")

#: Takes an argument's name and value. Raises a ValueError with both if the value is not allowed.
Check = Callable[[str, Any], None]


def check_arguments(checks: Mapping[str, Check], arguments: Mapping[str, Any]) -> None:
    """
    Check the values of arguments.

    :param checks: :data:`ALGORITHM_CHECKS` or :data:`POLICY_CHECKS`
    :param arguments: values by the argument's name; arguments without a check are ignored
    :raises ValueError: for the first value that is not allowed; the message says which values are
    """
    for name, check in checks.items():
        if name in arguments:
            check(name, arguments[name])


def plain_number(value: Any) -> Any:
    """
    Convert a number to one of Python's own types.

    Small integers of NumPy overflow (100 * np.uint8(3)), and a Fraction can't be multiplied by a tensor.

    :param value: an argument that has been checked
    :return: the number as an int, a float or a bool; anything else unchanged
    """
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _raise_invalid(name: str, value: Any, description: str) -> None:
    raise ValueError(f"{name}={value!r} must be {description}.")


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= at_least


def _is_plain_int(value: Any, at_least: int) -> bool:
    """Check for an integer of Python's own type, for arguments where SB3 does not accept NumPy's."""
    return isinstance(value, int) and _is_int(value, at_least)


def _is_class(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _number_check(is_valid: Callable[[float], bool], description: str) -> Check:
    return lambda name, value: check_number(name, value, is_valid, description)


def _choice_check(*choices: str) -> Check:
    return lambda name, value: check_choice(name, value, choices)


def _predicate_check(is_valid: Callable[[Any], bool], description: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_valid(value):
            _raise_invalid(name, value, description)

    return check


def _check_learning_rate(name: str, value: Any) -> None:
    if callable(value):
        learning_rate_of(value, 1.0)
    # SB3 accepts any number from a function, but only Python's own as a constant
    elif not isinstance(value, (float, int)) or isinstance(value, bool) or not 0.0 <= value < math.inf:
        _raise_invalid(
            name,
            value,
            "a finite float of at least 0, or a function of the remaining progress (from 1 to 0) that returns one",
        )


def _check_train_freq_form(name: str, value: Any) -> None:
    frequency, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    if not (_is_plain_int(frequency, 1) and getattr(unit, "value", unit) in ("step", "episode")):
        _raise_invalid(name, value, 'an int of at least 1, or a tuple such as (1, "step") or (1, "episode")')


def _check_guidance(name: str, value: Any) -> None:
    if not callable(value):
        check_choice(name, value, GUIDANCES, or_else=", or pass a callable")


def _check_spread_coef(name: str, value: Any) -> None:
    description = (
        'a finite number of at least 0, "auto", or "auto_" and an initial coefficient (default 1), such as "auto_0.1"'
    )
    if not isinstance(value, str):
        check_number(name, value, lambda x: 0.0 <= x < math.inf, description)
    elif not initial_spread_coef(value) > 0.0:
        _raise_invalid(name, value, description)


def initial_spread_coef(spread_coef: str) -> float:
    """
    Read the initial coefficient from ``spread_coef``.

    :param spread_coef: "auto" for 1, or another coefficient after it, as in "auto_0.1"
    :return: the initial coefficient, or 0 if the text has neither form
    """
    match = re.fullmatch(r"auto(?:_(.+))?", spread_coef)
    try:
        initial = float(match[1] or 1) if match else 0.0
    except ValueError:
        return 0.0
    return initial if math.isfinite(initial) else 0.0


def _check_device(name: str, value: Any) -> None:
    try:
        if not isinstance(value, (str, th.device)):
            raise RuntimeError
        get_device(value)
    except RuntimeError:
        _raise_invalid(name, value, 'a device of torch, such as "auto", "cpu" or "cuda"')


def _check_optional_dict(name: str, value: Any) -> None:
    if not (value is None or isinstance(value, Mapping)):
        _raise_invalid(name, value, "a dict of keyword arguments, or None")


def _is_net_arch(value: Any) -> bool:
    if isinstance(value, Mapping):
        return {"pi", "qf"} <= value.keys() <= {"pi", "qf", "behavior"} and all(
            _is_widths(widths) for widths in value.values()
        )
    return value is None or _is_widths(value)


def _is_widths(value: Any) -> bool:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return is_sequence and all(_is_int(width, 1) for width in value)


def _is_activation(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.keys() == {"pi", "qf"} and all(_makes_modules(each) for each in value.values())
    return value is None or _makes_modules(value)


def _makes_modules(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    try:
        return callable(value) and isinstance(value(), nn.Module)
    except Exception:  # another function may raise anything when called without arguments
        return False


def _is_optimizer_class(value: Any) -> bool:
    return _is_class(value, th.optim.Optimizer) and not issubclass(value, th.optim.LBFGS)


_check_bool = _predicate_check(lambda value: isinstance(value, (bool, np.bool_)), "True or False")
_check_share = _number_check(lambda x: 0.0 <= x <= 1.0, "a number between 0 and 1")

ALGORITHM_CHECKS: dict[str, Check] = {
    "policy": _predicate_check(
        lambda value: isinstance(value, str) or _is_class(value, BasePolicy),
        'the name of a policy, such as "MlpPolicy", or a policy class',
    ),
    "learning_rate": _check_learning_rate,
    "buffer_size": check_positive_int,
    "learning_starts": _predicate_check(lambda value: _is_int(value, 0), "an integer of at least 0"),
    "batch_size": check_positive_int,
    "tau": _check_share,
    "gamma": _check_share,
    "train_freq": _check_train_freq_form,
    "gradient_steps": _predicate_check(
        lambda value: _is_int(value, -1), "an integer of at least 0, or -1 for one gradient step for each environment step"
    ),
    "action_noise": _predicate_check(
        lambda value: value is None or isinstance(value, ActionNoise),
        "None, or an ActionNoise such as stable_baselines3.common.noise.NormalActionNoise(...)",
    ),
    "replay_buffer_class": _predicate_check(
        lambda value: value is None or _is_class(value, ReplayBuffer), "None, or a subclass of SB3's ReplayBuffer"
    ),
    "replay_buffer_kwargs": _check_optional_dict,
    "optimize_memory_usage": _check_bool,
    "n_steps": check_positive_int,
    "policy_delay": check_positive_int,
    "delay_behavior": _check_bool,
    "actor_tau": lambda name, value: (
        None
        if value is None
        else check_number(name, value, lambda x: 0.0 < x <= 1.0, "a number above 0 and at most 1, or None to keep no average")
    ),
    "flow_steps": check_positive_int,
    "ode_solver": _choice_check(*ODE_SOLVERS),
    "expectile": _number_check(lambda x: 0.0 < x < 1.0, "a number strictly between 0 and 1"),
    "w2_coef": _number_check(lambda x: 0.0 <= x < math.inf, "a finite number of at least 0"),
    "guidance": _check_guidance,
    "per_sample": _check_bool,
    "spread_coef": _check_spread_coef,
    # The floor of `losses.log_spread` hides a smaller spread, and no policy stays wider than evenly spread for long
    "target_spread": _number_check(lambda x: 0.03 <= x <= 0.6, "a number from 0.03 to 0.6 (nearly evenly spread actions)"),
    "matching": _choice_check(*MATCHING_SPACES),
    "noise_clip": lambda name, value: (
        None if value is None else check_number(name, value, lambda x: x > 0.0, "a number above 0, or None not to clip")
    ),
    "precision": _choice_check(*PRECISIONS),
    "compile": _predicate_check(
        lambda value: isinstance(value, (bool, np.bool_)) or (isinstance(value, str) and value == "auto"),
        '"auto", True or False',
    ),
    "use_sde": _predicate_check(
        lambda value: isinstance(value, (bool, np.bool_)) and not value,
        "False: FlowRL has no gSDE. Its flow draws noise of its own, and action_noise adds to it",
    ),
    "stats_window_size": _predicate_check(lambda value: _is_plain_int(value, 1), "an int of at least 1"),
    "policy_kwargs": _check_optional_dict,
    "seed": _predicate_check(
        lambda value: value is None or (_is_plain_int(value, 0) and value < 2**32), "None, or an int from 0 to 2**32 - 1"
    ),
    "device": _check_device,
}

POLICY_CHECKS: dict[str, Check] = {
    "net_arch": _predicate_check(
        _is_net_arch,
        "a list of layer widths (integers of at least 1), such as [256, 256], or dict(pi=[...], qf=[...]), optionally with "
        "behavior=[...]",
    ),
    "activation_fn": _predicate_check(
        _is_activation,
        "a class such as nn.ReLU, a function without arguments that returns a module, such as functools.partial(nn.LeakyReLU, "
        "0.2), or a dict of two such values with the keys 'pi' and 'qf'",
    ),
    "layer_norm": _check_bool,
    "critic_layout": _choice_check(*CRITIC_LAYOUTS),
    "features_extractor_class": _predicate_check(
        lambda value: _is_class(value, BaseFeaturesExtractor), "a subclass of SB3's BaseFeaturesExtractor"
    ),
    "features_extractor_kwargs": _check_optional_dict,
    "normalize_images": _check_bool,
    "optimizer_class": _predicate_check(
        _is_optimizer_class, "a class of torch.optim such as torch.optim.Adam, but not LBFGS, which needs a closure"
    ),
    "optimizer_kwargs": _check_optional_dict,
    "n_critics": check_positive_int,
    "batch_norm": _predicate_check(lambda value: value is None or isinstance(value, (bool, np.bool_)), "True, False or None"),
    "share_features_extractor": _check_bool,
    "average_actor": _check_bool,
}


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


def without_sde(policy_kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    """
    Leave out ``use_sde=False``, which SB3's SAC writes into a dict of arguments that it shares with FlowRL.

    :param policy_kwargs: as given to ``FlowRL``
    :return: the same without it
    """
    if not isinstance(policy_kwargs, Mapping) or policy_kwargs.get("use_sde", True) is not False:
        return policy_kwargs
    return {name: value for name, value in policy_kwargs.items() if name != "use_sde"}


def as_env(env: Any, verbose: int) -> GymEnv:
    """
    Make an environment from the argument ``env``, and check its actions.

    :param env: as given to ``FlowRL``
    :param verbose: as given to ``FlowRL``
    :return: the environment; an environment of OpenAI's gym is wrapped with shimmy, as in SB3
    :raises ValueError: if it is not an environment
    :raises UnsupportedActionSpaceError: if its action space is not supported
    """
    if isinstance(env, str):
        _check_not_a_vector(env)
    env = maybe_make_env(env, verbose)
    if not isinstance(env, VecEnv):
        env = _as_gymnasium_env(env)
    check_action_space(env.action_space)
    warn_of_wide_bounds(env.action_space)
    return env


def _check_not_a_vector(env_id: str) -> None:
    spec = registry.get(env_id)
    if spec is not None and spec.entry_point is None:
        raise ValueError(
            f"env={env_id!r} exists only as a vector environment. Make it with gymnasium.make_vec, and wrap it in "
            "sb3_flowrl.envs.vector.GymnasiumVecEnv."
        )


def _as_gymnasium_env(env: Any) -> Env:
    for package, advice in _OTHER_PACKAGES.items():
        if any(each.__module__.partition(".")[0] == package for each in type(env).__mro__):
            raise ValueError(f"env={env!r} {advice}")
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"env={env!r} is a vector environment of gymnasium. Wrap it in sb3_flowrl.envs.vector.GymnasiumVecEnv, or make "
            "the environments with stable_baselines3.common.env_util.make_vec_env."
        )
    try:
        return _patch_env(env)
    except ValueError as error:
        raise ValueError(
            f"env={env!r} must be an environment of gymnasium (or of OpenAI's gym, with shimmy installed), a VecEnv, or the "
            'id of a registered environment, such as "Pendulum-v1".'
        ) from error


def check_combination(observation_space: spaces.Space[Any], n_steps: int, optimize_memory_usage: bool) -> None:
    """
    Check arguments that are allowed separately but not together.

    :param observation_space: the environment's observation space
    :param n_steps: as given to ``FlowRL``
    :param optimize_memory_usage: as given to ``FlowRL``
    :raises UnsupportedObservationSpaceError: if SB3 can't turn the observations into tensors
    :raises ValueError: if two of them are not supported together
    """
    for part in observation_space.values() if isinstance(observation_space, spaces.Dict) else [observation_space]:
        if np.any(getattr(part, "start", 0) != 0):
            raise UnsupportedObservationSpaceError(
                f"The numbers of the observation space {observation_space} do not start at 0, so SB3 can't encode them. "
                "Subtract the start: gymnasium.wrappers.TransformObservation(env, lambda obs: obs - start, Discrete(n))."
            )
    if isinstance(observation_space, spaces.Dict):
        for name, value, off in (("n_steps", n_steps, 1), ("optimize_memory_usage", optimize_memory_usage, False)):
            if value != off:
                raise ValueError(
                    f"{name}={value} is not supported with Dict observations. Leave it at {off}, or flatten them."
                )
    if optimize_memory_usage and n_steps > 1:
        raise ValueError(f"optimize_memory_usage=True is not supported with n_steps={n_steps}. Choose one of them.")


def check_policy_kwargs(
    policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any], of_algorithm: Collection[str] = ()
) -> None:
    """
    Check that the policy accepts its arguments.

    :param policy_class: the policy's class
    :param policy_kwargs: as given to ``FlowRL``
    :param of_algorithm: arguments that must be passed to ``FlowRL`` itself
    :raises TypeError: for an unknown argument (the message suggests a similar one), or one that the algorithm provides
    :raises ValueError: for an argument of the algorithm, or a policy of another algorithm
    """
    if not any(each.__module__.startswith("sb3_flowrl.") for each in policy_class.__mro__):
        raise ValueError(
            f'policy={policy_class.__module__}.{policy_class.__name__} is another algorithm\'s. Pass "MlpPolicy", '
            "sb3_flowrl.MlpPolicy, or a subclass of sb3_flowrl.FlowActorCriticPolicy."
        )
    if misplaced := sorted({*of_algorithm} & policy_kwargs.keys()):
        raise ValueError(f"{misplaced} must be passed to FlowRL itself, not in policy_kwargs={policy_kwargs}.")
    known: set[str] = set()
    for each in policy_class.__mro__:
        parameters = inspect.signature(each).parameters
        known.update(parameters)
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
        if not each.__module__.startswith("sb3_flowrl."):
            return  # a class of the user's own may accept any other argument
    known -= {"observation_space", "action_space", "lr_schedule"}
    check_keywords("policy_kwargs: " + policy_class.__name__, policy_kwargs.keys(), sorted(known))


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
    handles_timeouts = (model.replay_buffer_kwargs or {}).get("handle_timeout_termination", True)
    if model.optimize_memory_usage and handles_timeouts and model.replay_buffer_class in (None, ReplayBuffer):
        raise ValueError(
            "optimize_memory_usage=True can't tell time limits from terminations. Pass "
            "replay_buffer_kwargs=dict(handle_timeout_termination=False) as well, or leave optimize_memory_usage at False."
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


def check_loaded_buffer(n_envs: int, replay_buffer: ReplayBuffer | None) -> None:
    """
    Check that a replay buffer holds the transitions of as many environments as the model has.

    :param n_envs: number of environments
    :param replay_buffer: the replay buffer
    :raises ValueError: if it does not
    """
    of_buffer = getattr(replay_buffer, "n_envs", n_envs)
    if of_buffer != n_envs:
        raise ValueError(
            f"The replay buffer holds transitions of {of_buffer} environment(s), but the model has n_envs={n_envs}. Load the "
            f"model with {of_buffer} environment(s), or without this buffer."
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
