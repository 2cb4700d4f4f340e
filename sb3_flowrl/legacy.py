"""
Loading of files that were saved before version 0.2.

Support for them ends on 2027-12-01. This module, and what calls it, will then be removed.

These files differ in four ways. The third applies only to files from before version 0.1, the last one to nearly all of these.

- They do not store the arguments of the policy that the user did not pass, and the defaults have changed since.
- They lack newer attributes.
- They store parameters and moments separately for each network of a critic. Today these are stacked (see ``stacked.py``).
- Their policies with Dict observations were built on a space with sorted keys.

``FlowRL.load``, ``FlowRL.set_parameters`` and ``FlowActorCriticPolicy.load`` call this module. ``FlowRL``'s constructor marks
new models with :data:`DEFAULTS_VERSION`, and builds policies on the space of :func:`policy_space`.
"""

import contextlib
import inspect
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import json_to_data, open_path
from torch import nn

from sb3_flowrl.stacked import StackedActivation, StackedMLP

#: ``networks.<network>.<layer>.<name>``, the old form. Stacked parameters are called ``networks.<layer>.<name>``.
_OLD_KEY = re.compile(r"networks\.\d+\.\d+\.\w+")

#: The version of the policy's defaults, which each file stores as ``defaults_version``: 0 is from before 0.1, 1 is 0.1.
DEFAULTS_VERSION = 2
#: Attributes that a file may lack, and the values that are used instead.
MISSING_ATTRIBUTES: dict[str, Any] = dict(spread_coef=0.0, has_sorted_keys=True, delay_behavior=False, actor_tau=None)
#: The policy's ``net_arch`` of version 1, where Q_β* and V_β* were as wide as Q_π.
FORMER_NET_ARCH = [256, 256]
#: The policy's defaults of version 0.
FORMER_POLICY_DEFAULTS: dict[str, Any] = dict(
    net_arch=dict(pi=[512, 512], qf=[512, 512, 512]),
    activation_fn=dict(pi=nn.ELU, qf=nn.GELU),
    batch_norm=False,
    optimizer_kwargs=dict(fused=True),
)


def missing_attributes(saved: dict[str, Any]) -> dict[str, Any]:
    """
    Return the attributes that a file does not store.

    :param saved: the file's attributes, see :func:`read_attributes`
    :return: their values by name, for the keyword arguments of SB3's ``load``
    """
    missing = {name: value for name, value in MISSING_ATTRIBUTES.items() if name not in saved}
    return {**missing, "has_sorted_keys": _has_sorted_keys(saved), "defaults_version": DEFAULTS_VERSION}


def former_objects(saved: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Return the former defaults that a file relies on.

    :param saved: the file's attributes, see :func:`read_attributes`
    :param custom_objects: objects that replace the saved ones, by name
    :return: objects that replace the saved ones, for ``custom_objects`` of SB3's ``load``
    """
    version = _defaults_version(saved)
    if not saved or version == DEFAULTS_VERSION:
        return {}
    parts = restore_objects(saved, "policy_class", "policy_kwargs", custom_objects=custom_objects)
    if not {"policy_class", "policy_kwargs"} <= parts.keys():  # SB3 reports which one can't be loaded
        return {}
    policy_class, given = parts["policy_class"], parts["policy_kwargs"]
    optimizer_class = given.get("optimizer_class", th.optim.Adam)
    former = dict(FORMER_POLICY_DEFAULTS) if version == 0 else dict(net_arch=FORMER_NET_ARCH)
    if optimizer_class not in (th.optim.Adam, th.optim.AdamW):
        former.pop("optimizer_kwargs", None)
    own_defaults = inspect.signature(policy_class).parameters
    for name in list(former):
        if name in own_defaults and own_defaults[name].default is not None:  # the default of a custom policy class
            del former[name]
    return dict(policy_kwargs={**given, **{name: value for name, value in former.items() if given.get(name) is None}})


def restore_objects(saved: dict[str, Any], *names: str, custom_objects: dict[str, Any] | None = None) -> dict[str, Any]:
    """
    Restore some of a file's attributes to Python objects.

    :param saved: the file's attributes, see :func:`read_attributes`
    :param names: names of attributes
    :param custom_objects: objects that replace the saved ones, by name
    :return: the objects by name, without those that the file does not hold or that can't be loaded
    """
    objects: dict[str, Any] = {}
    for name in names:
        with contextlib.suppress(ImportError):  # SB3 reports it, if it needs the object
            objects |= json_to_data(json.dumps({name: saved[name]} if name in saved else {}), custom_objects)
    return objects


def _defaults_version(saved: dict[str, Any]) -> int:
    # Before `defaults_version`, files of version 1 stored `stores_defaults`, and those of 0.1 `has_former_defaults`
    is_version_1 = "stores_defaults" in saved or saved.get("has_former_defaults", True) is False
    return saved.get("defaults_version", int(is_version_1))


def policy_arguments(saved: dict[str, Any]) -> dict[str, Any]:
    """
    Add the arguments that a policy file does not store.

    :param saved: the arguments that ``policy.save`` wrote
    :return: the arguments to make the policy with
    """
    return {"batch_norm": False, **saved}


def stacked_parameters(policy: nn.Module, params: dict[str, Any]) -> dict[str, Any]:
    """
    Stack the parameters and moments of separate networks. Those that are already stacked stay as they are.

    :param policy: the policy that will be loaded
    :param params: state dicts by the name of the object, as ``FlowRL.get_parameters`` returns them
    :return: the state dicts to load
    """
    params = dict(params)
    if "policy" in params:
        params["policy"] = stacked_policy_state(policy, params["policy"])
    for name in ("critic", "behavior_critic", "behavior_value"):
        if f"{name}.optimizer" in params:
            model = getattr(policy, name)
            params[f"{name}.optimizer"] = stack_optimizer_state(model.networks, model.optimizer, params[f"{name}.optimizer"])
    return params


def stacked_policy_state(policy: nn.Module, state_dict: dict[str, Any]) -> dict[str, Any]:
    """
    Stack the parameters of separate networks in the state of a policy.

    :param policy: the policy that will be loaded
    :param state_dict: its saved state, which stays as it is
    :return: the state to load
    """
    state_dict = dict(state_dict)
    for name in ("critic", "critic_target", "behavior_critic", "behavior_critic_target", "behavior_value"):
        if getattr(policy, name) is not None:
            stack_state_dict(getattr(policy, name).networks, state_dict, f"{name}.")
    return state_dict


def has_unsorted_keys(space: spaces.Space[Any]) -> bool:
    """
    Tell whether an observation space is a Dict with keys that gymnasium would sort.

    :param space: an observation space
    :return: whether sorting changes the order of its keys
    """
    return isinstance(space, spaces.Dict) and list(space.spaces) != list(with_sorted_keys(space).spaces)


def policy_space(space: spaces.Space[Any], has_sorted_keys: bool) -> spaces.Space[Any]:
    """
    Return the observation space of a model's policy.

    :param space: the environment's observation space
    :param has_sorted_keys: whether the networks take the keys of Dict observations in sorted order
    :return: the space
    """
    return with_sorted_keys(space) if has_sorted_keys and isinstance(space, spaces.Dict) else space


def with_sorted_keys(space: spaces.Dict) -> spaces.Dict:
    """
    Sort the keys of an observation space.

    The first layer of old policies takes its features in this order.

    :param space: the environment's observation space
    :return: the same space with its keys sorted
    """
    try:
        return spaces.Dict(sorted(space.spaces.items(), key=lambda item: item[0]))
    except TypeError:  # keys that can't be compared kept their order
        return space


def was_made_with_sorted_keys(path: str | Path | io.BufferedIOBase) -> bool:
    """
    Tell whether a file's networks were built on a space with sorted keys, see :func:`with_sorted_keys`.

    :param path: a file that ``FlowRL.save`` wrote
    :return: whether they were
    """
    return _has_sorted_keys(read_attributes(path))


def _has_sorted_keys(saved: dict[str, Any]) -> bool:
    # Version 0.1 had an argument `float64_observations`, and sorted keys only where it was False
    return bool(saved.get("has_sorted_keys", True)) and not saved.get("float64_observations", False)


def read_attributes(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """
    Read the attributes in a file as JSON, without unpickling.

    :param path: a file that ``FlowRL.save`` wrote
    :return: the attributes by name; none if the file is damaged, because SB3 then says what is wrong with it
    :raises ValueError: for a zip file that holds no model
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("data"))
    except KeyError:
        raise ValueError(f"{path} is a zip file, but none that holds a model: it has no entry `data`.") from None
    except zipfile.BadZipFile:
        return {}
    finally:
        if file is not path:
            file.close()


def stack_state_dict(networks: StackedMLP, state_dict: dict[str, Any], prefix: str) -> None:
    """
    Stack the parameters of separate networks in place. Those that are already stacked stay as they are.

    :param networks: the stack that will be loaded
    :param state_dict: the state of the module that holds the stack, and perhaps of other modules
    :param prefix: the beginning of the names, up to ``networks``
    """
    old_keys = [key for key in state_dict if key.startswith(prefix) and _OLD_KEY.fullmatch(key[len(prefix) :])]
    groups = _origins(networks)
    if len(old_keys) != sum(len(group) for group in groups):
        return
    old = [state_dict.pop(key) for key in old_keys]
    for (name, parameter), group in zip(networks.named_parameters(), groups, strict=True):
        state_dict[f"{prefix}networks.{name}"] = _stack([old[index] for index in group], parameter)


def stack_optimizer_state(networks: StackedMLP, optimizer: th.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """
    Stack what an optimizer stores for separate networks. What is already stacked stays as it is.

    :param networks: the stack; its parameters are the optimizer's last ones
    :param optimizer: the optimizer that will be loaded
    :param saved: the saved state of an optimizer
    :return: the state to load in its place
    """
    if not {"state", "param_groups"} <= saved.keys():  # PyTorch says what is wrong with it
        return saved
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    n_others = len(parameters) - len(list(networks.parameters()))  # those of a features extractor
    groups = [[index] for index in range(n_others)]
    groups += [[n_others + index for index in group] for group in _origins(networks)]
    (saved_group,) = saved["param_groups"] if len(saved["param_groups"]) == 1 else ({"params": []},)
    if len(saved_group["params"]) != sum(len(group) for group in groups) or _fits(saved["state"], parameters):
        return saved
    state = {
        new: {key: _stack([saved["state"][old][key] for old in group], parameters[new]) for key in saved["state"][group[0]]}
        for new, group in enumerate(groups)
        if all(old in saved["state"] for old in group)
    }
    return {**saved, "state": state, "param_groups": [{**saved_group, "params": list(range(len(groups)))}]}


def _origins(networks: StackedMLP) -> list[list[int]]:
    """
    List, for each parameter of a stack, the parameters of the separate networks that it is made of.

    They are numbered through all networks: the first network's parameters come first.
    """
    per_network = [
        len(list(layer.layers[0].parameters() if isinstance(layer, StackedActivation) else layer.parameters()))
        for layer in networks
    ]
    starts = [range(network * sum(per_network), (network + 1) * sum(per_network)) for network in range(networks.n_networks)]
    groups, offset = [], 0
    for layer, count in zip(networks, per_network, strict=True):
        stacks = [[start[offset + index] for start in starts] for index in range(count)]
        if isinstance(layer, StackedActivation):  # it holds its networks' parameters one by one
            stacks = [[stack[network]] for network in range(networks.n_networks) for stack in stacks]
        groups += stacks
        offset += count
    return groups


def _stack(values: list[Any], parameter: nn.Parameter) -> Any:
    """Stack the values of separate networks, or take the first if all are the same, such as Adam's number of steps."""
    is_stackable = isinstance(values[0], th.Tensor) and values[0].dim() == parameter.dim() - 1 and values[0].dim() > 0
    return th.stack(values) if is_stackable else values[0]


def _fits(state: dict[int, Any], parameters: list[nn.Parameter]) -> bool:
    return len(state) in (0, len(parameters)) and all(
        value.dim() == 0 or value.shape == parameters[index].shape
        for index, values in state.items()
        for value in values.values()
        if isinstance(value, th.Tensor)
    )
