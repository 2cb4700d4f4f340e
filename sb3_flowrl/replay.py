"""
From the replay buffer to the updates of one ``train()`` call: one sample, checked, and moved to the device once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.buffers import NStepRecencyReplayBuffer, RecencyReplayBuffer

#: Most bytes that are sampled at once; 1 000 updates of 256 transitions of HalfCheetah are a sixth of it.
MAX_SAMPLE_BYTES = 2**28
#: Buffers of which one large sample is as good as several small ones.
JOINT_BUFFERS = (
    ReplayBuffer,
    DictReplayBuffer,
    NStepReplayBuffer,
    HerReplayBuffer,
    RecencyReplayBuffer,
    NStepRecencyReplayBuffer,
)

Batch = ReplayBufferSamples | DictReplayBufferSamples


def sample_batches(
    buffer: ReplayBuffer,
    n_batches: int,
    batch_size: int,
    gamma: float,
    env: VecNormalize | None,
    device: th.device,
    check: Callable[[Batch], None],
) -> Iterator[Batch]:
    """
    Sample the batches of several updates.

    The buffers named in :data:`JOINT_BUFFERS` are asked for all of them at once (for as many as fit into
    :data:`MAX_SAMPLE_BYTES`). Any other buffer is asked for each batch by itself, as SB3 does: it may draw without
    replacement, add demonstrations to each batch, or return another number of transitions.

    :param buffer: the replay buffer
    :param n_batches: number of updates
    :param batch_size: B, samples in each update
    :param gamma: γ, the discount of transitions that don't bring their own
    :param env: associated VecNormalize, to normalize observations and rewards
    :param device: where the batches are wanted
    :param check: called with each sample, on the CPU, to raise if it can't be used
    :return: the batches, each with its ``discounts``
    """
    n_at_once = max(1, MAX_SAMPLE_BYTES // (batch_size * transition_bytes(buffer))) if type(buffer) in JOINT_BUFFERS else 1
    for start in range(0, n_batches, n_at_once):
        n_now = min(n_at_once, n_batches - start)
        sample = sample_on_cpu(buffer, n_now * batch_size, env)
        check(sample)
        if sample.discounts is None:
            sample = sample._replace(discounts=th.full_like(sample.rewards, gamma))
        fields = [split(field, n_now, device) for field in sample]
        yield from (type(sample)(*batch) for batch in zip(*fields, strict=True))


def sample_on_cpu(buffer: ReplayBuffer, n_transitions: int, env: VecNormalize | None) -> Batch:
    """
    Sample where the transitions are, so that they can be checked without waiting for the accelerator.

    :param buffer: the replay buffer, whose ``device`` stays what it is
    :param n_transitions: number of transitions
    :param env: associated VecNormalize, to normalise observations and rewards
    :return: the transitions, on the CPU
    """
    device_before, buffer.device = buffer.device, th.device("cpu")
    try:
        return buffer.sample(n_transitions, env=env)
    finally:
        buffer.device = device_before


def transition_bytes(buffer: ReplayBuffer) -> int:
    """
    :param buffer: a replay buffer
    :return: bytes of one sampled transition
    """
    space = buffer.observation_space
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    n_observation = sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts)
    return 2 * n_observation + 4 * (buffer.action_dim + 3)


def split(field: Any, n_batches: int, device: th.device) -> Sequence[Any]:
    """
    Deal a part of a sample out to batches in turns, as buffers may have ordered it: first the relabelled transitions of
    ``HerReplayBuffer``, say, and then the others.

    :param field: ``(n_batches * B, ...)``, or a dict of such tensors, or ``None``
    :param n_batches: number of batches
    :param device: where they are wanted
    :return: the batches, each ``(B, ...)``
    """
    if field is None:
        return [None] * n_batches
    if isinstance(field, dict):
        parts = zip(*(split(part, n_batches, device) for part in field.values()), strict=True)
        return [dict(zip(field, each, strict=True)) for each in parts]
    dealt = field.unflatten(0, (-1, n_batches)).transpose(0, 1).contiguous()
    if device.type == "cuda" and dealt.device.type == "cpu":
        dealt = dealt.pin_memory()
    return dealt.to(device, non_blocking=True).unbind()
