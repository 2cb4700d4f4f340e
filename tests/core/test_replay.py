"""From the replay buffer to the batches of a ``train()`` call."""

from collections import namedtuple

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.type_aliases import DictReplayBufferSamples

from sb3_flowrl import FlowRL, RecencyReplayBuffer, buffers
from tests.models import StepCountingEnv, batches_of, make_model, trained_model

CPU = th.device("cpu")


def test_a_sample_is_dealt_out_in_turns():
    batches = buffers.split(th.arange(12).reshape(6, 2), 3)
    assert [batch.tolist() for batch in batches] == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert all(batch.is_contiguous() for batch in batches)
    assert [batch["key"].tolist() for batch in buffers.split({"key": th.arange(4)}, 2)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_sample_is_moved_as_it_is(device):
    """The meta device stands in for one with memory of its own."""
    dict_obs = dict(image=th.randint(0, 255, (3, 2, 5), dtype=th.uint8), vector=th.randn(3, 4, dtype=th.float64))
    column = th.randn(3, 1)
    sample = DictReplayBufferSamples(dict_obs, th.randn(3, 7)[:, ::2], dict_obs, column, column, column)
    moved = buffers.move(sample, th.device(device))
    assert type(moved) is DictReplayBufferSamples and moved.observations.keys() == dict_obs.keys()
    for ours, theirs in ((moved.observations["image"], dict_obs["image"]), (moved.actions, sample.actions)):
        assert ours.device.type == device and ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if device == "cpu":
        assert th.equal(moved.actions, sample.actions)


def test_packed_tensors_are_unpacked_as_they_were():
    tensors = [th.randint(0, 255, (5, 3), dtype=th.uint8), th.randn(4, 2).mT, th.randn(3, dtype=th.float64), th.zeros(0, 4)]
    tensors += [th.tensor([True, False]), th.randn(2, 2).half()]
    packed, places = buffers.pack(tensors, pinned=False)
    assert packed.dtype == th.uint8 and all(place % buffers.ALIGNMENT == 0 for place in places)
    for ours, theirs in zip(buffers.unpack(packed.clone(), places, tensors), tensors, strict=True):
        assert ours.dtype == theirs.dtype and th.equal(ours, theirs)


def test_every_batch_has_its_share_of_the_newest_transitions():
    """``RecencyReplayBuffer`` puts them last in a sample, which is that of four updates here."""
    model = make_model(
        replay_buffer_class=RecencyReplayBuffer, replay_buffer_kwargs=dict(recent_share=0.25, recent_size=5)
    ).learn(100)
    assert model.replay_buffer is not None
    model.replay_buffer.rewards[:] = 0
    model.replay_buffer.rewards[95:100] = 1
    for batch in batches_of(model, 4, 64):
        assert 16 <= batch.rewards.sum() <= 30  # some of the uniform ones are new too


def count_samples(model: FlowRL, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    assert model.replay_buffer is not None
    sample = model.replay_buffer.sample

    def counted(size, env=None):
        sizes.append(size)
        return sample(size, env=env)

    monkeypatch.setattr(model.replay_buffer, "sample", counted)
    return sizes


def test_one_sample_serves_all_updates_of_a_call(monkeypatch):
    model = trained_model()
    sizes = count_samples(model, monkeypatch)
    n_updates = model._n_updates
    model.train(6, batch_size=8)
    assert sizes == [48] and model._n_updates == n_updates + 6


def test_samples_that_would_need_too_much_memory_come_in_several(monkeypatch):
    model = trained_model()
    assert isinstance(model.replay_buffer, ReplayBuffer)
    # Pendulum: two observations of 3 numbers, an action, reward, end and discount, all float32
    assert buffers.transition_bytes(model.replay_buffer) == 4 * (2 * 3 + 1 + 3)
    monkeypatch.setattr(buffers, "MAX_SAMPLE_BYTES", 2 * 8 * 40)
    sizes = count_samples(model, monkeypatch)
    model.train(5, batch_size=8)
    assert sizes == [16, 16, 8]
    sizes.clear()
    model.train(2, batch_size=100)  # even if one batch is too large
    assert sizes == [100, 100]


def test_dict_observations_count_all_their_parts():
    env = SimpleMultiObsEnv(discrete_actions=False, num_col=2, num_row=2)
    model = FlowRL("MultiInputPolicy", env, buffer_size=10, learning_starts=2, policy_kwargs=dict(net_arch=[8]))
    assert isinstance(model.replay_buffer, ReplayBuffer)
    n_bytes = 64 * 64 + 5 * 4  # a grey image, and a vector that is stored as float32
    assert buffers.transition_bytes(model.replay_buffer) == 2 * n_bytes + 4 * (4 + 3)
    model.learn(6)
    first, second = batches_of(model, 2, 3)
    assert first.observations["img"].shape[0] == second.next_observations["vec"].shape[0] == 3


def test_the_buffer_goes_on_giving_its_samples_where_it_gave_them(monkeypatch):
    model = trained_model()
    model.replay_buffer.device = elsewhere = th.device("meta")
    where: list[th.device] = []
    sample = model.replay_buffer.sample

    def watched_sample(*args, **kwargs):
        where.append(model.replay_buffer.device)
        return sample(*args, **kwargs)

    monkeypatch.setattr(model.replay_buffer, "sample", watched_sample)
    model.train(2, batch_size=8)
    assert where == [CPU] and model.replay_buffer.device == elsewhere


class Odd(ReplayBuffer):
    """
    :param change: what is done to its samples
    """

    def __init__(self, *args, change, **kwargs):
        super().__init__(*args, **kwargs)
        self.change = change

    def sample(self, batch_size, env=None):
        return self.change(super().sample(batch_size, env=env))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sample: None, "returned a NoneType; it must return ReplayBufferSamples"),
        (tuple, "returned a tuple; it must return ReplayBufferSamples"),
        (
            lambda sample: sample._replace(rewards=sample.rewards.numpy()),
            "returned rewards as a ndarray; they must be tensors",
        ),
        (lambda sample: sample._replace(dones=None), "returned dones as a NoneType; they must be tensors"),
        (
            lambda sample: namedtuple("Old", sample._fields[:5])(*sample[:5]),
            "returned a Old without discounts; it needs all of ReplayBufferSamples",
        ),
        # Added to values of shape (32, 1), these would make (32, 32)
        (lambda sample: sample._replace(rewards=sample.rewards.flatten()), r"rewards of shape \(32,\) with 32 action"),
        (lambda sample: sample._replace(dones=sample.dones[:3]), r"dones of shape \(3, 1\) with 32 action"),
        (lambda sample: type(sample)(*(part[:0] for part in sample[:5])), r"rewards of shape \(0, 1\) with 0 action"),
    ],
)
def test_a_buffer_that_returns_no_sample_is_told_what_is_wrong(change, message):
    model = make_model(replay_buffer_class=Odd, replay_buffer_kwargs=dict(change=change))
    with pytest.raises(ValueError, match=rf"Odd.sample\(\) .*{message}"):
        model.learn(60)


def test_n_step_returns_do_not_go_on_in_the_episode_that_a_second_call_of_learn_begins():
    model = make_model(env=StepCountingEnv(terminates=False, length=1_000), n_steps=3, gamma=1.0).learn(30)
    model.learn(30)
    buffer = model.replay_buffer
    buffer.rewards[:30], buffer.rewards[30:60] = 1, 100
    sample = buffer._get_samples(np.array([27, 28, 29, 30]))
    assert sample.rewards.ravel().tolist() == [3, 2, 1, 300]
