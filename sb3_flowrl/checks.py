"""
Checks of what users and environments hand in, each with an error that says what was wrong and what to do.
"""

import difflib
import inspect
import math
import numbers
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
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


#: What ``precision`` may be.
PRECISIONS = ("auto", "float32", "float32_fast", "bfloat16")
#: What ``critic_layout`` may be.
CRITIC_LAYOUTS = ("mlp", "reference")

#: Raises a ValueError with the argument's name and value if the value is not allowed.
Check = Callable[[str, Any], None]


def check_arguments(checks: Mapping[str, Check], arguments: Mapping[str, Any]) -> None:
    """
    :param checks: :data:`ALGORITHM_CHECKS` or :data:`POLICY_CHECKS`
    :param arguments: values by the argument's name; those that have no check are left alone
    :raises ValueError: naming the first that is not allowed, what it is, and what it may be
    """
    for name, check in checks.items():
        if name in arguments:
            check(name, arguments[name])


def plain_number(value: Any) -> Any:
    """
    Convert a number to one of Python's own: those of NumPy overflow (100 * np.uint8(3)), and a Fraction can't be multiplied
    with a tensor.

    :param value: an argument that has been checked
    :return: an int, a float or a bool in the place of another such number; anything else as it is
    """
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _refuse(name: str, value: Any, description: str) -> None:
    raise ValueError(f"{name}={value!r} must be {description}.")


def _is_int(value: Any, at_least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= at_least


def _is_plain_int(value: Any, at_least: int) -> bool:
    """Where SB3 can't do with an integer of numpy's."""
    return isinstance(value, int) and _is_int(value, at_least)


def _is_class(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _number(is_valid: Callable[[float], bool], description: str) -> Check:
    return lambda name, value: check_number(name, value, is_valid, description)


def _choice(*choices: str) -> Check:
    return lambda name, value: check_choice(name, value, choices)


def _such_that(is_valid: Callable[[Any], bool], description: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_valid(value):
            _refuse(name, value, description)

    return check


def _check_learning_rate(name: str, value: Any) -> None:
    if callable(value):
        learning_rate_of(value, 1.0)
    # From a function SB3 takes any number, but as a constant only Python's
    elif not isinstance(value, (float, int)) or isinstance(value, bool) or not 0.0 <= value < math.inf:
        _refuse(
            name,
            value,
            "a float of at least 0 and finite, or a function of the remaining progress (from 1 to 0) that returns one",
        )


def _check_train_freq(name: str, value: Any) -> None:
    frequency, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    if not (_is_plain_int(frequency, 1) and getattr(unit, "value", unit) in ("step", "episode")):
        _refuse(name, value, 'an int of at least 1, or a tuple such as (1, "step") or (1, "episode")')


def _check_guidance(name: str, value: Any) -> None:
    if not callable(value):
        check_choice(name, value, GUIDANCES, or_else=", or pass a callable")


def _check_spread_coef(name: str, value: Any) -> None:
    description = 'a finite number of at least 0, "auto", or, to begin with another coefficient than 1, such as "auto_0.1"'
    if not isinstance(value, str):
        check_number(name, value, lambda x: 0.0 <= x < math.inf, description)
    elif not initial_spread_coef(value) > 0.0:
        _refuse(name, value, description)


def initial_spread_coef(spread_coef: str) -> float:
    """
    :param spread_coef: "auto", or a first value after it, as in "auto_0.1"
    :return: the coefficient to begin with, or 0 if the text is none of them
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
        _refuse(name, value, 'a device of torch, such as "auto", "cpu" or "cuda"')


def _check_optional_dict(name: str, value: Any) -> None:
    if not (value is None or isinstance(value, Mapping)):
        _refuse(name, value, "a dict of keyword arguments, or None")


def _is_net_arch(value: Any) -> bool:
    if isinstance(value, Mapping):
        return {"pi", "qf"} <= value.keys() and all(_is_widths(widths) for widths in value.values())
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
    except Exception:  # whatever a function that is none of these raises without its arguments
        return False


def _is_optimizer_class(value: Any) -> bool:
    return _is_class(value, th.optim.Optimizer) and not issubclass(value, th.optim.LBFGS)


_check_bool = _such_that(lambda value: isinstance(value, (bool, np.bool_)), "True or False")
_check_share = _number(lambda x: 0.0 <= x <= 1.0, "a number between 0 and 1")

ALGORITHM_CHECKS: dict[str, Check] = {
    "policy": _such_that(
        lambda value: isinstance(value, str) or _is_class(value, BasePolicy),
        'the name of a policy, such as "MlpPolicy", or a policy class',
    ),
    "learning_rate": _check_learning_rate,
    "buffer_size": check_positive_int,
    "learning_starts": _such_that(lambda value: _is_int(value, 0), "an integer of at least 0"),
    "batch_size": check_positive_int,
    "tau": _check_share,
    "gamma": _check_share,
    "train_freq": _check_train_freq,
    "gradient_steps": _such_that(
        lambda value: _is_int(value, -1), "an integer of at least 0, or -1 for as many as there were environment steps"
    ),
    "action_noise": _such_that(
        lambda value: value is None or isinstance(value, ActionNoise),
        "None, or an ActionNoise such as stable_baselines3.common.noise.NormalActionNoise(...)",
    ),
    "replay_buffer_class": _such_that(
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
    "ode_solver": _choice(*ODE_SOLVERS),
    "expectile": _number(lambda x: 0.0 < x < 1.0, "a number strictly between 0 and 1"),
    "w2_coef": _number(lambda x: 0.0 <= x < math.inf, "a finite number of at least 0"),
    "guidance": _check_guidance,
    "per_sample": _check_bool,
    "spread_coef": _check_spread_coef,
    # The floor of `losses.log_spread` hides what is narrower, and wider than evenly spread no policy gets for long
    "target_spread": _number(lambda x: 0.03 <= x <= 0.6, "a number from 0.03 to 0.6, which is nearly evenly spread actions"),
    "matching": _choice(*MATCHING_SPACES),
    "noise_clip": lambda name, value: (
        None if value is None else check_number(name, value, lambda x: x > 0.0, "a number above 0, or None not to clip")
    ),
    "precision": _choice(*PRECISIONS),
    "compile": _such_that(
        lambda value: isinstance(value, (bool, np.bool_)) or (isinstance(value, str) and value == "auto"),
        '"auto", True or False',
    ),
    "float64_observations": _check_bool,
    "stats_window_size": _such_that(lambda value: _is_plain_int(value, 1), "an int of at least 1"),
    "policy_kwargs": _check_optional_dict,
    "seed": _such_that(
        lambda value: value is None or (_is_plain_int(value, 0) and value < 2**32), "None, or an int from 0 to 2**32 - 1"
    ),
    "device": _check_device,
}

POLICY_CHECKS: dict[str, Check] = {
    "net_arch": _such_that(
        _is_net_arch,
        "a list of layer widths, integers of at least 1, such as [256, 256], or a dict(pi=[...], qf=[...]), to which "
        "behavior=[...] may be added",
    ),
    "activation_fn": _such_that(
        _is_activation,
        "a class such as nn.ReLU, a function without arguments that returns a module, such as functools.partial(nn.LeakyReLU, "
        "0.2), or, with the keys 'pi' and 'qf' like net_arch, a dict of two",
    ),
    "layer_norm": _check_bool,
    "critic_layout": _choice(*CRITIC_LAYOUTS),
    "features_extractor_class": _such_that(
        lambda value: _is_class(value, BaseFeaturesExtractor), "a subclass of SB3's BaseFeaturesExtractor"
    ),
    "features_extractor_kwargs": _check_optional_dict,
    "normalize_images": _check_bool,
    "optimizer_class": _such_that(
        _is_optimizer_class, "a class of torch.optim such as torch.optim.Adam, but not LBFGS, which needs a closure"
    ),
    "optimizer_kwargs": _check_optional_dict,
    "n_critics": check_positive_int,
    "batch_norm": _such_that(lambda value: value is None or isinstance(value, (bool, np.bool_)), "True, False or None"),
    "share_features_extractor": _check_bool,
    "average_actor": _check_bool,
}


def check_model(model: OffPolicyAlgorithm) -> None:
    """
    Check the arguments of a model before its networks are made, and make its numbers Python's own.

    :param model: the model, whose attributes may have been changed by ``load``
    :raises ValueError: naming the first argument that is not allowed
    """
    arguments = vars(model)
    check_arguments(ALGORITHM_CHECKS, arguments)
    arguments.update({name: plain_number(arguments[name]) for name in ALGORITHM_CHECKS if name in arguments})
    check_combination(model.observation_space, model.n_steps, model.optimize_memory_usage)
    check_replay_buffer(model)


def as_env(env: Any, verbose: int) -> GymEnv:
    """
    :param env: what ``FlowRL`` was given to learn from
    :param verbose: as given to ``FlowRL``
    :return: the environment; one of OpenAI's gym is wrapped as SB3 does it, through shimmy
    :raises ValueError: if it is no environment
    """
    env = maybe_make_env(env, verbose)
    if isinstance(env, VecEnv):
        return env
    try:
        return _patch_env(env)
    except ValueError as error:
        raise ValueError(
            f"env={env!r} must be an environment of gymnasium (or of OpenAI's gym, with shimmy installed), a VecEnv, or the "
            'id of a registered one, such as "Pendulum-v1".'
        ) from error


def check_combination(observation_space: spaces.Space, n_steps: int, optimize_memory_usage: bool) -> None:
    """
    Check what is allowed by itself but not together.

    :param observation_space: the environment's observation space
    :param n_steps: as given to ``FlowRL``
    :param optimize_memory_usage: as given to ``FlowRL``
    :raises ValueError: if something can't be had with something else
    """
    if isinstance(observation_space, spaces.Dict):
        for name, value, off in (("n_steps", n_steps, 1), ("optimize_memory_usage", optimize_memory_usage, False)):
            if value != off:
                raise ValueError(f"{name}={value} can't be had with Dict observations. Leave it at {off}, or flatten them.")
    if optimize_memory_usage and n_steps > 1:
        raise ValueError(f"optimize_memory_usage=True can't be had with n_steps={n_steps}. Choose one of them.")


def check_policy_kwargs(
    policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any], of_algorithm: Collection[str] = ()
) -> None:
    """
    Check that the policy takes what it is given.

    :param policy_class: the policy's class
    :param policy_kwargs: as given to ``FlowRL``
    :param of_algorithm: arguments that are to be passed to ``FlowRL`` itself
    :raises TypeError: for an argument that is unknown, naming the most similar one, or not the user's to give
    :raises ValueError: for an argument of the algorithm
    """
    if misplaced := sorted({*of_algorithm} & policy_kwargs.keys()):
        raise ValueError(f"{misplaced} must be passed to FlowRL itself, not in policy_kwargs={policy_kwargs}.")
    known: set[str] = set()
    for each in policy_class.__mro__:
        parameters = inspect.signature(each).parameters
        known.update(parameters)
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
        if not each.__module__.startswith("sb3_flowrl."):
            return  # who knows what it does with the others
    known -= {"observation_space", "action_space", "lr_schedule"}
    check_keywords("policy_kwargs: " + policy_class.__name__, policy_kwargs.keys(), sorted(known))


def check_replay_buffer(model: OffPolicyAlgorithm) -> None:
    """
    Check that the replay buffer that is asked for suits the environment.

    :param model: a model whose replay buffer has not been made yet
    :raises ValueError: if it does not
    """
    if model.optimize_memory_usage and model.buffer_size // model.n_envs < 2:
        raise ValueError(
            f"optimize_memory_usage=True needs room for two transitions of each environment, but buffer_size="
            f"{model.buffer_size} for n_envs={model.n_envs} has less. Give it at least {2 * model.n_envs}."
        )
    if model.replay_buffer_class is None or not issubclass(model.replay_buffer_class, HerReplayBuffer):
        return
    keys = ("observation", "achieved_goal", "desired_goal")
    space = model.observation_space
    if not isinstance(space, spaces.Dict) or not {*keys} <= space.spaces.keys():
        raise ValueError(
            f"replay_buffer_class={model.replay_buffer_class.__name__} needs Dict observations with the keys {keys}, but the "
            f"observation space is {space}. Use an environment with goals, or another replay buffer."
        )


def check_train_freq(n_envs: int, train_freq: Any) -> None:
    """
    Check that episodes are not counted in several environments. A model may have both, to predict, but not learn so.

    :param n_envs: number of environments
    :param train_freq: as given to ``FlowRL``
    :raises ValueError: if they are
    """
    unit = train_freq[1] if isinstance(train_freq, (tuple, TrainFreq)) else "step"
    if n_envs > 1 and getattr(unit, "value", unit) == "episode":
        raise ValueError(
            f"train_freq={train_freq} counts episodes, which can be done with one environment only, but there are "
            f"n_envs={n_envs}. Count steps instead, such as train_freq=(1, 'step')."
        )


def check_discount(gamma: float, replay_buffer: ReplayBuffer | None) -> None:
    """
    Check that a buffer of n-step returns, which discounts by itself, does so as the model does.

    :param gamma: as given to ``FlowRL``
    :param replay_buffer: the replay buffer
    :raises ValueError: if it has another discount factor
    """
    of_buffer = getattr(replay_buffer, "gamma", gamma)
    if of_buffer != gamma:
        n_steps = getattr(replay_buffer, "n_steps", None)
        raise ValueError(
            f"The replay buffer discounts its {n_steps}-step returns by gamma={of_buffer}, but the model has gamma={gamma}. "
            f"Give both the same, with replay_buffer_kwargs=dict(n_steps={n_steps}, gamma={gamma})."
        )


def warn_of_no_update(model: OffPolicyAlgorithm) -> None:
    """
    Warn of a call of ``learn`` that ended before the first update.

    :param model: a model that made no update in it
    """
    if model.num_timesteps <= model.learning_starts:
        warnings.warn(
            f"No update was made: learn() ended at step {model.num_timesteps}, and the updates begin after "
            f"learning_starts={model.learning_starts} steps of the model. Train for longer, or pass a smaller one, as in "
            f"{type(model).__name__}(..., learning_starts={min(100, max(model.num_timesteps // 10, 0))})."
        )
