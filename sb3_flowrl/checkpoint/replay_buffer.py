"""The replay buffer in a checkpoint, without its empty rows."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checkpoint import pickling


def pack_buffer(buffer: ReplayBuffer, n_rows: int) -> tuple[ReplayBuffer, list[tuple[str, str | None]]]:
    """
    Copy a replay buffer with only its first rows.

    :param buffer: the replay buffer
    :param n_rows: number of rows
    :return: the copy, and the arrays that have rows: by attribute, and by key in a dict of arrays
    """
    packed, names = copy.copy(buffer), _storages(buffer)
    _map_storages(packed, names, lambda array: array[:n_rows])
    return packed, names


def dump_replay_buffer(buffer: ReplayBuffer, file: BinaryIO) -> None:
    """
    Pickle a replay buffer of any class, without its empty rows.

    :param buffer: the replay buffer
    :param file: file to write to
    """
    packed, names = pack_buffer(buffer, buffer.size())
    pickling.dump((packed, names), file)


def load_replay_buffer(model: OffPolicyAlgorithm, path: Path) -> None:
    """
    Load a replay buffer into a model.

    :param model: the model
    :param path: the file that :func:`dump_replay_buffer` wrote
    """
    buffer, names = pickling.load(path)

    def unpack(array: np.ndarray) -> np.ndarray:
        if len(array) == buffer.buffer_size:
            return array
        storage = np.zeros((buffer.buffer_size, *array.shape[1:]), dtype=array.dtype)
        storage[: len(array)] = array
        return storage

    _map_storages(buffer, names, unpack)
    buffer.device = model.device
    if isinstance(buffer, HerReplayBuffer):
        assert model.env is not None
        buffer.set_env(model.env)
    model.replay_buffer = buffer


def _storages(buffer: ReplayBuffer) -> list[tuple[str, str | None]]:
    """List the arrays that hold transitions by attribute, and by key in a dict of arrays (Dict observations)."""

    def is_storage(value: Any) -> bool:
        return isinstance(value, np.ndarray) and value.ndim > 1 and value.shape[0] == buffer.buffer_size

    names: list[tuple[str, str | None]] = []
    for name, value in vars(buffer).items():
        if is_storage(value):
            names.append((name, None))
        elif isinstance(value, dict):
            names.extend((name, key) for key, array in value.items() if is_storage(array))
    return names


def _map_storages(
    buffer: ReplayBuffer, names: list[tuple[str, str | None]], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    for name, key in names:
        value = getattr(buffer, name)
        setattr(buffer, name, change(value) if key is None else {**value, key: change(value[key])})
