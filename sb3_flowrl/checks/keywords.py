"""Explain arguments that do not exist, those of SAC among them."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec

from stable_baselines3.common.policies import BasePolicy

P = ParamSpec("P")

#: Arguments of SB3's SAC that FlowRL does not have, and what takes their place.
_ARGUMENTS_OF_SAC = {
    "ent_coef": "FlowRL has no entropy. spread_coef, 'auto' by default, takes its place.",
    "target_entropy": "FlowRL has no entropy. target_spread takes its place.",
    "target_update_interval": "FlowRL updates its targets with its actor, at every policy_delay-th update.",
    "sde_sample_freq": "FlowRL has no gSDE.",
    "use_sde_at_warmup": "FlowRL has no gSDE.",
}


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


def without_sde(policy_kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    """
    Leave out ``use_sde=False``, which SB3's SAC writes into a dict of arguments that it shares with FlowRL.

    :param policy_kwargs: as given to ``FlowRL``
    :return: the same without it
    """
    if not isinstance(policy_kwargs, Mapping) or policy_kwargs.get("use_sde", True) is not False:
        return policy_kwargs
    return {name: value for name, value in policy_kwargs.items() if name != "use_sde"}


def check_policy_kwargs(
    policy_class: type[BasePolicy], policy_kwargs: Mapping[str, Any], of_algorithm: Collection[str] = ()
) -> None:
    """
    Check that the policy accepts its arguments.

    :param policy_class: the policy's class
    :param policy_kwargs: as given to ``FlowRL``
    :param of_algorithm: arguments that must be passed to ``FlowRL`` itself
    :raises TypeError: for an unknown argument (the message suggests a similar one), or one that the algorithm provides
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
            return  # a class of the user's own may accept any other argument
    known -= {"observation_space", "action_space", "lr_schedule"}
    check_keywords("policy_kwargs: " + policy_class.__name__, policy_kwargs.keys(), sorted(known))
