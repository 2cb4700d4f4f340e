"""
Replay buffers, and the way from a buffer to the updates: one sample, checked, and moved to the device once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checks import check_number, check_positive_int


def float32_space(space: spaces.Space) -> spaces.Space:
    """
    The space of observations as a replay buffer should store them: MuJoCo's arrive as float64, but the networks see float32.

    :param space: the environment's observation space
    :return: the same space, with float32 in the place of float64, and the keys of a Dict in the same order
    """
    if isinstance(space, spaces.Dict):
        # A list of pairs, as gymnasium sorts the keys of a dict
        return spaces.Dict([(key, float32_space(value)) for key, value in space.spaces.items()])
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space


class RecencyReplayBuffer(ReplayBuffer):
    """
    Replay buffer that draws a fixed share of each batch from its newest transitions, and the rest from all of them.

    Source: ``utilis/Replaybuffer.py`` of the authors' code, which draws without replacement; here, as in SB3, with it.

    :param args: arguments of SB3's ``ReplayBuffer``
    :param recent_share: share of each batch that is drawn from the newest transitions, between 0 and 1
    :param recent_size: how many transitions, of all environments together, count as the newest
    :param kwargs: keyword arguments of SB3's ``ReplayBuffer``
    :raises ValueError: if ``recent_share`` is not between 0 and 1, or ``recent_size`` not a positive integer
    """

    def __init__(self, *args, recent_share: float = 0.2, recent_size: int = 2048, **kwargs):
        super().__init__(*args, **kwargs)
        check_number("recent_share", recent_share, lambda x: 0.0 <= x <= 1.0, "a number between 0 and 1")
        check_positive_int("recent_size", recent_size)
        self.recent_share = recent_share
        self.recent_size = recent_size

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_size: Number of elements to sample
        :param env: associated gym VecEnv
            to normalize the observations/rewards when sampling
        :return: ``recent_share`` of them, rounded up, from the newest transitions, and the others from all
        """
        # Rows of the buffer by age, 0 being the newest. Each holds one transition of every environment.
        n_rows = self.size()
        if self.optimize_memory_usage and self.full:
            n_rows -= 1  # the oldest row's next observation is already another one
        n_recent_rows = min(math.ceil(self.recent_size / self.n_envs), n_rows)
        n_uniform = int(batch_size * (1.0 - self.recent_share))
        ages = np.concatenate(
            [np.random.randint(0, n_rows, size=n_uniform), np.random.randint(0, n_recent_rows, size=batch_size - n_uniform)]
        )
        return self._get_samples((self.pos - 1 - ages) % self.buffer_size, env=env)


class NStepRecencyReplayBuffer(RecencyReplayBuffer, NStepReplayBuffer):
    """
    :class:`RecencyReplayBuffer` with n-step returns: give ``n_steps`` and ``gamma`` in ``replay_buffer_kwargs``.
    """


#: Most bytes that are sampled at once; 1 000 updates of 256 transitions of HalfCheetah are a sixth of it.
MAX_SAMPLE_BYTES = 2**28
#: Bytes between the beginnings of packed tensors are multiples of this.
ALIGNMENT = 16
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
    reward_scale: float,
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
    :param reward_scale: what rewards are divided by
    :param check: called with each sample, on the CPU, to raise if it can't be used
    :return: the batches, each with its ``discounts``
    """
    n_at_once = max(1, MAX_SAMPLE_BYTES // (batch_size * transition_bytes(buffer))) if type(buffer) in JOINT_BUFFERS else 1
    for start in range(0, n_batches, n_at_once):
        n_now = min(n_at_once, n_batches - start)
        sample = sample_on_cpu(buffer, n_now * batch_size, env)
        if type(buffer) not in JOINT_BUFFERS:
            check_form(buffer, sample)
        check(sample)
        if reward_scale != 1.0:
            sample = sample._replace(rewards=sample.rewards / reward_scale)
        if sample.discounts is None:
            sample = sample._replace(discounts=th.full_like(sample.rewards, gamma))
        fields = [split(field, n_now) for field in move(sample, device)]
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


def check_form(buffer: ReplayBuffer, sample: Any) -> None:
    """
    Check what a buffer of the user's own returns, as rewards of shape ``(B,)`` would be added to values of shape ``(B, 1)``
    without an error.

    :param buffer: the replay buffer
    :param sample: what its ``sample`` returned
    :raises ValueError: if it is no sample, or its parts are not tensors of the right shapes
    """
    returned = f"{type(buffer).__name__}.sample() returned"
    if not hasattr(sample, "_asdict"):
        raise ValueError(
            f"{returned} a {type(sample).__name__}; it must return ReplayBufferSamples or DictReplayBufferSamples."
        )
    for name, part in sample._asdict().items():
        for each in part.values() if isinstance(part, dict) else [part]:
            if each is not None and not isinstance(each, th.Tensor):
                raise ValueError(f"{returned} {name} as a {type(each).__name__}; they must be tensors.")
    n = len(sample.actions)
    for name in ("rewards", "dones"):
        if getattr(sample, name).shape != (n, 1) or n == 0:
            raise ValueError(
                f"{returned} {name} of shape {tuple(getattr(sample, name).shape)} with {n} action(s); it must return at least "
                "one transition, and one number for each in a column, of shape (n, 1)."
            )


def transition_bytes(buffer: ReplayBuffer) -> int:
    """
    :param buffer: a replay buffer
    :return: bytes of one sampled transition
    """
    space = buffer.observation_space
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    n_observation = sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts)
    return 2 * n_observation + 4 * (buffer.action_dim + 3)


def move(sample: Batch, device: th.device) -> Batch:
    """
    Move a sample to the device in one transfer, for which the host does not wait.

    :param sample: the sample, usually on the CPU
    :param device: where it is wanted
    :return: the sample there
    """
    tensors = tensors_of(sample)
    if device.type == "cpu" or any(tensor.device.type != "cpu" for tensor in tensors):
        moved = [tensor.to(device) for tensor in tensors]
    else:
        packed, places = pack(tensors, pinned=device.type == "cuda")
        moved = unpack(packed.to(device, non_blocking=True), places, tensors)
    return with_tensors(sample, moved)


def tensors_of(batch: Batch) -> list[th.Tensor]:
    """
    List the tensors of a batch or a sample, those of Dict observations one by one.

    :param batch: the batch, with its ``discounts``
    :return: its tensors
    """
    fields: Sequence[Any] = batch
    return [tensor for field in fields for tensor in (field.values() if isinstance(field, dict) else [field])]


def with_tensors(batch: Batch, tensors: Sequence[th.Tensor]) -> Batch:
    """
    Put other tensors in the place of a batch's own.

    :param batch: the batch
    :param tensors: the tensors, in the order of :func:`tensors_of`
    :return: a batch of the same form
    """
    left, fields = iter(tensors), cast(Sequence[Any], batch)
    others: list[Any] = [{key: next(left) for key in field} if isinstance(field, dict) else next(left) for field in fields]
    return type(batch)(*others)


def pack(tensors: Sequence[th.Tensor], pinned: bool) -> tuple[th.Tensor, list[int]]:
    """
    Copy tensors into one, byte by byte.

    :param tensors: tensors on the CPU
    :param pinned: whether to pack them into pinned memory
    :return: the bytes, and where each tensor begins in them, aligned for any type
    """
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    packed = th.empty(end, dtype=th.uint8, pin_memory=pinned)
    for target, tensor in zip(unpack(packed, places, tensors), tensors, strict=True):
        target.copy_(tensor)
    return packed, places


def unpack(packed: th.Tensor, places: Sequence[int], like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    View packed bytes as tensors.

    :param packed: what :func:`pack` returned, on any device
    :param places: where each tensor begins
    :param like: tensors of the same types and shapes
    :return: the tensors, as views
    """
    return [
        packed[place : place + each.nbytes].view(each.dtype).view(each.shape) for place, each in zip(places, like, strict=True)
    ]


def split(field: Any, n_batches: int) -> Sequence[Any]:
    """
    Deal a part of a sample out to batches in turns, as buffers may have ordered it: first the relabelled transitions of
    ``HerReplayBuffer``, say, and then the others.

    :param field: ``(n_batches * B, ...)``, or a dict of such tensors
    :param n_batches: number of batches
    :return: the batches, each ``(B, ...)``
    """
    if isinstance(field, dict):
        parts = zip(*(split(part, n_batches) for part in field.values()), strict=True)
        return [dict(zip(field, each, strict=True)) for each in parts]
    return field.unflatten(0, (-1, n_batches)).transpose(0, 1).contiguous().unbind()
