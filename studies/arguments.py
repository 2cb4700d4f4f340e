"""
List the arguments of a run's model, including the defaults of its constructors, so that a changed default is noticed.
"""

import contextlib
import inspect
import io
from collections.abc import Mapping
from typing import Any

from rl_zoo3.utils import ALGOS

from .manager import make_manager
from .records import Record, as_plain_data
from .study import Run

#: Arguments that do not affect what is learned, or are part of the run's specification.
WITHOUT_INFLUENCE = ("seed", "device", "verbose", "tensorboard_log", "stats_window_size", "_init_setup_model")


def constructor_defaults(algo: str, policy: str) -> Record:
    """
    Collect the default arguments of an algorithm and of its policy.

    :param algo: rl_zoo3's name of an algorithm
    :param policy: the name of one of its policies
    :return: the defaults as plain data; those of the policy are named ``policy_kwargs.<name>``
    """
    defaults = _defaults(ALGOS[algo])
    policy_class = ALGOS[algo].policy_aliases.get(policy)
    if policy_class is not None:
        defaults |= {f"policy_kwargs.{name}": value for name, value in _defaults(policy_class).items()}
    return as_plain_data(defaults)


def _defaults(cls: type) -> dict[str, Any]:
    """Collect the defaults of a constructor, and of its base classes' constructors where it passes arguments on."""
    defaults: dict[str, Any] = {}
    for ancestor in cls.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(ancestor.__init__).parameters.values()  # type: ignore[misc]
        own = {each.name: each.default for each in parameters if each.default is not each.empty}
        defaults = own | defaults
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return {name: value for name, value in defaults.items() if name not in WITHOUT_INFLUENCE}


def resolve(run: Run) -> Record:
    """
    Find the arguments that a run would be made with now.

    :param run: the run
    :return: ``hyperparameters``, those of rl_zoo3's files overridden by the study's, and ``defaults``, the constructors'
    """
    with contextlib.redirect_stdout(io.StringIO()):
        _, hyperparameters = make_manager(run).read_hyperparameters()
    return describe(run, hyperparameters)


def describe(run: Run, hyperparameters: Mapping[str, Any]) -> Record:
    """
    Describe the arguments of a run as plain data.

    :param run: the run
    :param hyperparameters: as rl_zoo3 resolved them
    :return: ``hyperparameters``, and ``defaults``, the constructors'
    """
    return dict(
        hyperparameters=as_plain_data(hyperparameters),
        defaults=constructor_defaults(run.algo, str(hyperparameters["policy"])),
    )
