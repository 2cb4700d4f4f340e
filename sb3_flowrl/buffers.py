"""
Replay buffers, and the sampling of batches for the updates.

The batches of several updates come from one sample, which is checked on the CPU and moved to the device once.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_flowrl.checks import check_number, check_positive_int
from sb3_flowrl.execution import tensors_of, with_tensors


def float32_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """
    Replace float64 with float32 in an observation space, for the replay buffer.

    MuJoCo's observations arrive as float64, but the networks see float32.

    :param space: the environment's observation space
    :return: the same space with float32 instead of float64, and with the keys of a Dict in the same order
    """
    if isinstance(space, spaces.Dict):
        # A list of pairs, because gymnasium sorts the keys of a dict
        return spaces.Dict([(key, float32_space(value)) for key, value in space.spaces.items()])
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        with np.errstate(over="ignore"):  # float64's largest number, as a bound, becomes infinite
            return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space


@contextmanager
def float32_buffer(
    model: OffPolicyAlgorithm, policy_space: spaces.Space[Any], policy_kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """
    Make SB3's ``_setup_model`` store float64 observations as float32.

    SB3 passes one observation space to the replay buffer and to the policy. Inside the context they get one each.

    :param model: the model to set up
    :param policy_space: the observation space of the policy
    :param policy_kwargs: arguments of the policy beside ``model.policy_kwargs``
    """
    space, policy_class = model.observation_space, model.policy_class

    def make_policy(_: spaces.Space[Any], *args: Any, **kwargs: Any) -> BasePolicy:
        return policy_class(policy_space, *args, **{**kwargs, **policy_kwargs})

    model.observation_space, model.policy_class = float32_space(space), make_policy  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            if model.replay_buffer_kwargs.get("n_steps") == model.n_steps:
                # A loaded model has the n-step buffer already, and SB3 would warn that it ignores n_steps
                warnings.filterwarnings("ignore", message="`n_steps=")
            yield
    finally:
        model.observation_space, model.policy_class = space, policy_class


def check_n_steps(n_steps: int, buffer_class: type[ReplayBuffer] | None, gamma: float) -> None:
    """
    Check that a replay buffer with n-step returns is used where they are asked for.

    :param n_steps: the argument of ``FlowRL``
    :param buffer_class: class of the replay buffer
    :param gamma: γ, for the message
    :raises ValueError: for :class:`RecencyReplayBuffer` and more than one step
    """
    if n_steps > 1 and buffer_class is RecencyReplayBuffer:
        raise ValueError(
            f"n_steps={n_steps} has no effect with RecencyReplayBuffer. Use NStepRecencyReplayBuffer, and "
            f"replay_buffer_kwargs=dict(n_steps={n_steps}, gamma={gamma}) instead of n_steps."
        )


class RecencyReplayBuffer(ReplayBuffer):
    """
    Replay buffer that draws a fixed share of each batch from its newest transitions.

    It draws the rest of the batch from all transitions. Source: ``utilis/Replaybuffer.py`` of the authors' code. Their code
    draws without replacement; this class draws with replacement, as SB3 does.

    :param args: arguments of SB3's ``ReplayBuffer``
    :param recent_share: share of each batch that is drawn from the newest transitions, between 0 and 1
    :param recent_size: number of transitions that count as the newest, over all environments
    :param kwargs: keyword arguments of SB3's ``ReplayBuffer``
    :raises ValueError: if ``recent_share`` is not between 0 and 1, or ``recent_size`` is not a positive integer
    """

    def __init__(self, *args: Any, recent_share: float = 0.2, recent_size: int = 2048, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_number("recent_share", recent_share, lambda x: 0.0 <= x <= 1.0, "a number between 0 and 1")
        check_positive_int("recent_size", recent_size)
        self.recent_share = recent_share
        self.recent_size = recent_size

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        Sample transitions.

        :param batch_size: Number of elements to sample
        :param env: associated gym VecEnv
            to normalize the observations/rewards when sampling
        :return: ``recent_share`` of them, rounded up, from the newest transitions, and the rest from all transitions
        """
        # Rows of the buffer are counted by age; 0 is the newest. Each row holds one transition of every environment.
        n_rows = self.size()
        if self.optimize_memory_usage and self.full:
            n_rows -= 1  # the next observation of the newest row has replaced the oldest row's observation
        n_recent_rows = min(math.ceil(self.recent_size / self.n_envs), n_rows)
        # Rounded first, because 100 times 0.07 is a little more than 7
        n_uniform = batch_size - math.ceil(round(batch_size * self.recent_share, 9))
        ages = np.concatenate(
            [np.random.randint(0, n_rows, size=n_uniform), np.random.randint(0, n_recent_rows, size=batch_size - n_uniform)]
        )
        return self._get_samples((self.pos - 1 - ages) % self.buffer_size, env=env)


class NStepRecencyReplayBuffer(RecencyReplayBuffer, NStepReplayBuffer):
    """
    :class:`RecencyReplayBuffer` with n-step returns.

    Pass ``n_steps`` and ``gamma`` in ``replay_buffer_kwargs``.
    """


#: Limit of the bytes that are sampled at once. 1 000 updates of 256 HalfCheetah transitions take a sixth of it.
MAX_SAMPLE_BYTES = 2**28
#: Each packed tensor begins at a multiple of this number of bytes.
ALIGNMENT = 16
#: Buffer classes for which one large sample is as good as several small ones.
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

    Buffers of the classes in :data:`JOINT_BUFFERS` sample all batches at once, or as many as fit into
    :data:`MAX_SAMPLE_BYTES`. Any other buffer samples each batch separately, as in SB3: it may draw without replacement, add
    demonstrations to each batch, or return a different number of transitions.

    :param buffer: the replay buffer
    :param n_batches: number of updates
    :param batch_size: B, samples in each update
    :param gamma: γ, the discount of transitions that do not have their own
    :param env: associated VecNormalize, to normalize observations and rewards
    :param device: the device to move the batches to
    :param check: a function that is called with each sample, on the CPU, and raises an error if the sample is unusable
    :return: the batches, each with its ``discounts``
    """
    n_at_once = max(1, MAX_SAMPLE_BYTES // (batch_size * transition_bytes(buffer))) if type(buffer) in JOINT_BUFFERS else 1
    for start in range(0, n_batches, n_at_once):
        n_now = min(n_at_once, n_batches - start)
        sample = sample_on_cpu(buffer, n_now * batch_size, env)
        if type(buffer) not in JOINT_BUFFERS:
            check_form(buffer, sample)
        check(sample)
        if sample.discounts is None:
            sample = sample._replace(discounts=th.full_like(sample.rewards, gamma))
        fields = [split(field, n_now) for field in move(sample, device)]
        yield from (type(sample)(*batch) for batch in zip(*fields, strict=True))


def sample_on_cpu(buffer: ReplayBuffer, n_transitions: int, env: VecNormalize | None) -> Batch:
    """
    Sample on the CPU, so that the sample can be checked without waiting for the accelerator.

    :param buffer: the replay buffer; its ``device`` is restored afterwards
    :param n_transitions: number of transitions
    :param env: associated VecNormalize, to normalize observations and rewards
    :return: the transitions, on the CPU
    """
    device_before, buffer.device = buffer.device, th.device("cpu")
    try:
        return buffer.sample(n_transitions, env=env)
    finally:
        buffer.device = device_before


def check_form(buffer: ReplayBuffer, sample: Any) -> None:
    """
    Check the form of a sample from a custom replay buffer.

    PyTorch would add rewards of shape ``(B,)`` to values of shape ``(B, 1)`` without an error.

    :param buffer: the replay buffer
    :param sample: the return value of its ``sample``
    :raises ValueError: if it is not a sample, or its parts are not tensors of the right shapes
    """
    returned = f"{type(buffer).__name__}.sample() returned"
    if not hasattr(sample, "_asdict"):
        raise ValueError(
            f"{returned} a {type(sample).__name__}; it must return ReplayBufferSamples or DictReplayBufferSamples."
        )
    if missing := [name for name in ReplayBufferSamples._fields if not hasattr(sample, name)]:
        raise ValueError(
            f"{returned} a {type(sample).__name__} without {', '.join(missing)}; it needs all of ReplayBufferSamples."
        )
    for name, part in sample._asdict().items():
        for each in part.values() if isinstance(part, dict) else [part]:
            if not isinstance(each, th.Tensor) and not (each is None and name == "discounts"):
                raise ValueError(f"{returned} {name} as a {type(each).__name__}; they must be tensors.")
    n = len(sample.actions)
    for name in ("rewards", "dones", "discounts"):
        part = getattr(sample, name)
        if part is not None and (part.shape != (n, 1) or n == 0):
            raise ValueError(
                f"{returned} {name} of shape {tuple(part.shape)} with {n} action(s); it must return at least "
                f"one transition, and {name} of shape (n, 1) for n transitions."
            )


def transition_bytes(buffer: ReplayBuffer) -> int:
    """
    Count the bytes of one sampled transition.

    :param buffer: a replay buffer
    :return: the number of bytes
    """
    space = buffer.observation_space
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    n_observation = sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts)
    return 2 * n_observation + 4 * (buffer.action_dim + 3)


def move(sample: Batch, device: th.device) -> Batch:
    """
    Move a sample to the device in one transfer, without making the host wait.

    :param sample: the sample, usually on the CPU
    :param device: the device to move it to
    :return: the sample on that device
    """
    tensors = tensors_of(sample)
    if device.type == "cpu" or any(tensor.device.type != "cpu" for tensor in tensors):
        moved = [tensor.to(device) for tensor in tensors]
    else:
        packed, places = pack(tensors, pinned=device.type == "cuda")
        moved = unpack(packed.to(device, non_blocking=True), places, tensors)
    return with_tensors(sample, moved)


def pack(tensors: Sequence[th.Tensor], pinned: bool) -> tuple[th.Tensor, list[int]]:
    """
    Copy the bytes of several tensors into one tensor.

    :param tensors: tensors on the CPU
    :param pinned: whether to pack them into pinned memory
    :return: the bytes, and the index at which each tensor begins, aligned for any type
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

    :param packed: the bytes that :func:`pack` returned, on any device
    :param places: the index at which each tensor begins
    :param like: tensors of the same types and shapes
    :return: the tensors, as views
    """
    return [
        packed[place : place + each.nbytes].view(each.dtype).view(each.shape) for place, each in zip(places, like, strict=True)
    ]


def split(field: Any, n_batches: int) -> Sequence[Any]:
    """
    Split one field of a sample into batches, dealing out its rows in turns.

    Each batch then gets its share of every kind of row, even if the buffer orders them: ``HerReplayBuffer`` returns the
    relabeled transitions after the others.

    :param field: ``(n_batches * B, ...)``, or a dict of such tensors
    :param n_batches: number of batches
    :return: the batches, each ``(B, ...)``
    """
    if isinstance(field, dict):
        parts = zip(*(split(part, n_batches) for part in field.values()), strict=True)
        return [dict(zip(field, each, strict=True)) for each in parts]
    return field.unflatten(0, (-1, n_batches)).transpose(0, 1).contiguous().unbind()
