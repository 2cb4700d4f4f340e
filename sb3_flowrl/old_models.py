"""
Loading what older releases saved.

Before the networks of a critic were stacked (see ``stacked.py``), each network had parameters, and moments in its optimiser,
of its own. And before a policy got the environment's own observation space, it got one with sorted keys.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import open_path
from torch import nn

from sb3_flowrl.stacked import StackedActivation, StackedMLP

#: ``networks.<network>.<layer>.<name>``; what is now stacked is called ``networks.<layer>.<name>``
_OLD_KEY = re.compile(r"networks\.\d+\.\d+\.\w+")


def has_unsorted_keys(space: spaces.Space) -> bool:
    """
    :param space: an observation space
    :return: whether it is a Dict whose keys gymnasium would sort
    """
    return isinstance(space, spaces.Dict) and list(space.spaces) != list(with_sorted_keys(space).spaces)


def with_sorted_keys(space: spaces.Dict) -> spaces.Dict:
    """
    The observation space that policies of Dict observations had before they got the environment's own. The first layer of
    their networks takes the features in this order.

    :param space: the environment's observation space
    :return: the same space with its keys sorted
    """
    try:
        return spaces.Dict(sorted(space.spaces.items(), key=lambda item: item[0]))
    except TypeError:  # keys that can't be compared stayed in their order
        return space


def was_made_with_sorted_keys(path: str | Path | io.BufferedIOBase) -> bool:
    """
    :param path: a file that ``FlowRL.save`` wrote
    :return: whether its networks were built on :func:`with_sorted_keys`
    """
    return bool(_saved_json(path).get("has_sorted_keys", True))


def read_saved_names(path: str | Path | io.BufferedIOBase) -> set[str]:
    """
    :param path: a file that ``FlowRL.save`` wrote
    :return: the names of the attributes in it
    """
    return set(_saved_json(path))


def _saved_json(path: str | Path | io.BufferedIOBase) -> dict[str, Any]:
    """The attributes as JSON, without unpickling any. Where there are none, SB3 says what is wrong with the file."""
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError):
        return {}
    finally:
        if file is not path:
            file.close()


def stack_state_dict(networks: StackedMLP, state_dict: dict[str, Any], prefix: str) -> None:
    """
    Stack, in place, the parameters of separate networks. What is stacked already is left alone.

    :param networks: the stack that will be loaded
    :param state_dict: the state of what holds it, and perhaps of other modules
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
    Stack what an optimiser remembers of separate networks. What is stacked already is left alone.

    :param networks: the stack whose parameters are the optimiser's last
    :param optimizer: the optimiser that will be loaded
    :param saved: the saved state of an optimiser
    :return: the state to load in its place
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    n_others = len(parameters) - len(list(networks.parameters()))  # of a features extractor
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
    """For each parameter of a stack, which of the separate networks' parameters, counted through them all, it is made of."""
    per_network = [
        len(list(layer.layers[0].parameters() if isinstance(layer, StackedActivation) else layer.parameters()))
        for layer in networks
    ]
    starts = [range(network * sum(per_network), (network + 1) * sum(per_network)) for network in range(networks.n_networks)]
    groups, offset = [], 0
    for layer, count in zip(networks, per_network, strict=True):
        stacks = [[start[offset + index] for start in starts] for index in range(count)]
        if isinstance(layer, StackedActivation):  # which holds its networks' parameters one by one
            stacks = [[stack[network]] for network in range(networks.n_networks) for stack in stacks]
        groups += stacks
        offset += count
    return groups


def _stack(values: list[Any], parameter: nn.Parameter) -> Any:
    """Adam's number of steps, for one, is the same for all networks."""
    is_stackable = isinstance(values[0], th.Tensor) and values[0].dim() == parameter.dim() - 1 and values[0].dim() > 0
    return th.stack(values) if is_stackable else values[0]


def _fits(state: dict[int, Any], parameters: list[nn.Parameter]) -> bool:
    return len(state) in (0, len(parameters)) and all(
        value.dim() == 0 or value.shape == parameters[index].shape
        for index, values in state.items()
        for value in values.values()
        if isinstance(value, th.Tensor)
    )
