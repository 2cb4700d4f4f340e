"""Check the values of arguments, one by one."""

import math
import numbers
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import get_device
from torch import nn

from sb3_flowrl.checks.finite import learning_rate_of
from sb3_flowrl.flow import MATCHING_SPACES, ODE_SOLVERS
from sb3_flowrl.guidance import GUIDANCES


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
            f"total_timesteps={total_timesteps!r} must be a whole number of steps, such as 1_000_000 or 1e6."
        ) from None


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
    "scale_rewards": _check_bool,
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
