"""
The defaults of the policy: today's, and those that older models were made with, whose files don't name what was not asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, NamedTuple

from torch import nn


class PolicyDefaults(NamedTuple):
    """
    What ``FlowActorCriticPolicy`` takes for arguments that are ``None``.

    :ivar net_arch: widths of the hidden layers
    :ivar activation_fn: activation of all networks, or of the actor (``pi``) and of the critics and V_β* (``qf``)
    :ivar batch_norm: whether Q_π is normalised by batch
    :ivar adam_kwargs: keyword arguments of Adam and AdamW
    """

    net_arch: list[int] | dict[str, list[int]]
    activation_fn: type[nn.Module] | dict[str, type[nn.Module]]
    batch_norm: bool
    adam_kwargs: dict[str, Any]


#: What the studies in docs/results measured.
TODAYS = PolicyDefaults([256, 256], nn.ReLU, True, dict(betas=(0.5, 0.999), fused=True))
#: The paper's and its authors', which were the defaults before.
FORMER = PolicyDefaults(dict(pi=[512, 512], qf=[512, 512, 512]), dict(pi=nn.ELU, qf=nn.GELU), False, dict(fused=True))

_in_use: ContextVar[PolicyDefaults] = ContextVar("policy_defaults", default=TODAYS)
_is_loading: ContextVar[bool] = ContextVar("is_loading", default=False)


def policy_defaults() -> PolicyDefaults:
    """
    :return: the defaults in use, a copy that may be changed
    """
    return deepcopy(_in_use.get())


@contextmanager
def use(defaults: PolicyDefaults) -> Iterator[None]:
    """
    :param defaults: those of the policies that are made meanwhile
    """
    token = _in_use.set(defaults)
    try:
        yield
    finally:
        _in_use.reset(token)


def is_loading() -> bool:
    """
    :return: whether a model is made only to be filled with what a file says
    """
    return _is_loading.get()


@contextmanager
def loading() -> Iterator[None]:
    """
    Tells the constructor of a model that it is made to be filled from a file.
    """
    token = _is_loading.set(True)
    try:
        yield
    finally:
        _is_loading.reset(token)
