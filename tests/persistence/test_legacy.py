"""
Models saved before the networks of a critic were stacked.

``data/old/core_model.zip`` was made at commit 5697fb5, by 70 updates on Pendulum-v1 with ``net_arch=[8, 8]``.
``core_model.npz`` holds what that commit computed with it: predictions and values, and the same again after four updates on
the replay data and random numbers that are in it too.
"""

import shutil
import warnings
from copy import deepcopy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_flowrl import FlowActorCriticPolicy, FlowRL, flowrl, v0_1_arguments
from sb3_flowrl.export import load_policy_safe
from sb3_flowrl.flow import FlowNoise
from sb3_flowrl.legacy import FORMER_POLICY_DEFAULTS, stack_optimizer_state, stack_state_dict
from sb3_flowrl.stacked import StackedMLP
from tests.models import assert_same, moments, parameters, trained_model

DATA = Path(__file__).parents[1] / "data" / "old"
TWINS = ("critic", "critic_target", "behavior_critic", "behavior_critic_target")


@pytest.fixture
def data():
    with np.load(DATA / "core_model.npz") as arrays:
        return dict(arrays)


def check_values(model: FlowRL, data: dict[str, np.ndarray], prefix: str, atol: float) -> None:
    observations, actions = th.as_tensor(data["observations"]), th.as_tensor(data["actions"])
    predictions, _ = model.predict(data["observations"], deterministic=True)
    np.testing.assert_allclose(predictions, data[f"{prefix}predictions"], atol=atol)
    with th.no_grad():
        values = {name: th.cat(getattr(model, name)(observations, actions), 1) for name in TWINS}
        values["behavior_value"] = model.behavior_value(observations)
    for name, value in values.items():
        np.testing.assert_allclose(value.numpy(), data[prefix + name], atol=atol, err_msg=name)


def test_it_predicts_and_judges_as_before(data):
    check_values(FlowRL.load(DATA / "core_model"), data, "", atol=1e-6)


def test_it_goes_on_training_as_before(data, monkeypatch):
    model = FlowRL.load(DATA / "core_model", env=gym.make("Pendulum-v1"))
    assert model._n_updates == data["n_updates"]
    model.set_logger(Logger(folder=None, output_formats=[]))
    buffer = model.replay_buffer
    assert isinstance(buffer, ReplayBuffer)
    for index, obs in enumerate(data["buffer_observations"]):
        next_obs, action = data["buffer_next_observations"][index], data["buffer_actions"][index]
        buffer.add(obs, next_obs, action, data["buffer_rewards"][index], np.zeros(1), [{}])
    # each of four updates on all 64 transitions
    monkeypatch.setattr(buffer, "sample", lambda size, env=None: buffer._get_samples(np.repeat(np.arange(64), size // 64)))
    noises = iter([FlowNoise(*(th.as_tensor(data[f"noise_{name}"][i]) for name in FlowNoise._fields)) for i in range(4)])
    monkeypatch.setattr(flowrl, "draw_noise", lambda *args: next(noises))
    model.train(4, 64)
    check_values(model, data, "after_", atol=1e-5)


def test_what_it_is_saved_as_now_is_left_alone(tmp_path):
    model = trained_model()
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model")
    assert_same(parameters(model), parameters(loaded))
    assert_same(moments(model), moments(loaded))


def test_it_has_the_defaults_of_its_time_also_when_it_is_saved_again(tmp_path):
    model = FlowRL.load(DATA / "core_model")
    model.save(tmp_path / "again")
    for each in (model, FlowRL.load(tmp_path / "again")):
        assert each.spread_coef == 0.0 and each.log_spread_coef is None and each.critic_target is not None
        assert isinstance(each.actor.velocity_net[2], nn.ELU) and "GELU" in str(each.critic.networks)
        assert each.actor.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        assert each.policy_kwargs["net_arch"] == [8, 8]
    fresh = trained_model()
    fresh.save(tmp_path / "fresh")
    loaded = FlowRL.load(tmp_path / "fresh")
    assert loaded.spread_coef == "auto" and loaded.critic_target is None
    assert isinstance(loaded.actor.velocity_net[2], nn.ReLU)


class NarrowPolicy(FlowActorCriticPolicy):
    """With a default of its own."""

    def __init__(self, observation_space, action_space, lr_schedule, net_arch=(4,), **kwargs):
        super().__init__(observation_space, action_space, lr_schedule, net_arch=list(net_arch), **kwargs)


@pytest.mark.parametrize(
    "policy, policy_kwargs, widths",
    [
        ("MlpPolicy", {}, [512, 512]),
        ("MlpPolicy", dict(net_arch=None, activation_fn=None, optimizer_kwargs=None), [512, 512]),
        (NarrowPolicy, {}, [4]),
    ],
)
def test_what_an_older_model_was_not_asked_for_is_as_it_was(policy, policy_kwargs, widths, tmp_path):
    former = {**FORMER_POLICY_DEFAULTS, **(dict(net_arch=[4]) if policy is NarrowPolicy else {})}
    model = FlowRL(policy, "Pendulum-v1", buffer_size=1, spread_coef=0.0, policy_kwargs=former)
    model.policy_kwargs = policy_kwargs  # all that such a file says
    model.save(tmp_path / "old", exclude=["defaults_version", "spread_coef"])
    loaded = FlowRL.load(tmp_path / "old")
    assert [layer.out_features for layer in loaded.actor.velocity_net if isinstance(layer, nn.Linear)] == [*widths, 1]
    assert_same(parameters(model), parameters(loaded))
    assert "GELU" in str(loaded.critic.networks) and loaded.spread_coef == 0.0
    assert loaded.policy.optimizer_kwargs == dict(fused=True)


@pytest.mark.parametrize("marker", [dict(stores_defaults=True), dict(has_former_defaults=False)])
@pytest.mark.parametrize("policy_kwargs", [{}, dict(net_arch=None), dict(net_arch=[8]), dict(batch_norm=False)])
def test_a_model_of_version_0_1_keeps_a_wide_behavior_critic(marker, policy_kwargs, tmp_path):
    net_arch = policy_kwargs.get("net_arch") or [256, 256]
    former = v0_1_arguments(buffer_size=1, policy_kwargs={**policy_kwargs, "net_arch": net_arch})
    model = FlowRL("MlpPolicy", "Pendulum-v1", **former)
    model.policy_kwargs = policy_kwargs  # all that such a file says
    vars(model).update(marker)
    model.save(tmp_path / "old", exclude=["defaults_version"])
    loaded = FlowRL.load(tmp_path / "old")
    assert_same(parameters(model), parameters(loaded))
    assert not loaded.delay_behavior
    loaded.save(tmp_path / "again")
    assert_same(parameters(model), parameters(FlowRL.load(tmp_path / "again")))


def test_a_model_that_is_set_up_later_has_todays_defaults():
    class SetUpLater(FlowRL):
        def __init__(self, policy, env):
            super().__init__(policy, env, buffer_size=1, _init_setup_model=False)
            self._setup_model()

    model = SetUpLater("MlpPolicy", "Pendulum-v1")
    assert model.spread_coef == "auto" and model.critic_target is None
    assert model.policy.net_arch == dict(pi=[256, 256], qf=[256, 256], behavior=[128, 128])


def test_a_policy_saved_alone_before_there_was_batch_norm_has_none(tmp_path):
    policy = FlowRL.load(DATA / "core_model").policy
    policy.save(tmp_path / "policy")
    saved = th.load(tmp_path / "policy", weights_only=False)
    del saved["data"]["batch_norm"]
    th.save(saved, tmp_path / "policy")
    assert_same(policy.state_dict(), FlowActorCriticPolicy.load(tmp_path / "policy").state_dict())


@pytest.mark.parametrize("activation", [nn.GELU, nn.PReLU])
@pytest.mark.parametrize("n_networks", [1, 2])
def test_separate_networks_and_their_moments_are_stacked(n_networks, activation):
    extractor = nn.Linear(3, 3)
    networks = [nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), activation(), nn.Linear(4, 1)) for _ in range(n_networks)]
    separate = nn.ModuleDict(dict(extractor=extractor, networks=nn.ModuleList(networks)))
    stacked = nn.ModuleDict(dict(extractor=nn.Linear(3, 3), networks=StackedMLP(networks)))
    old_optimizer, new_optimizer = (th.optim.Adam(module.parameters(), lr=0.1) for module in (separate, stacked))
    inputs = th.randn(16, 3)

    def step(optimizer, forward):
        optimizer.zero_grad()
        forward(inputs).square().sum().backward()
        optimizer.step()

    def old_forward(x):
        return th.stack([network(extractor(x)) for network in networks])

    def new_forward(x):
        return stacked["networks"](stacked["extractor"](x))

    for _ in range(3):
        step(old_optimizer, old_forward)

    def convert(saved_parameters, saved_state):
        stack_state_dict(stacked["networks"], saved_parameters, "")
        stacked.load_state_dict(saved_parameters)
        new_optimizer.load_state_dict(stack_optimizer_state(stacked["networks"], new_optimizer, saved_state))

    convert(separate.state_dict(), deepcopy(old_optimizer.state_dict()))
    th.testing.assert_close(new_forward(inputs), old_forward(inputs))
    for _ in range(3):
        step(old_optimizer, old_forward)
        step(new_optimizer, new_forward)
    th.testing.assert_close(new_forward(inputs), old_forward(inputs))

    # what is stacked already goes through as it is
    after = new_forward(inputs)
    convert(stacked.state_dict(), new_optimizer.state_dict())
    assert th.equal(new_forward(inputs), after)
    assert all(state["step"] == 6 for state in new_optimizer.state.values())


@pytest.fixture
def of_v0_1():
    """What version 0.1 (commit 3da9631) computed with the files of its own in ``data/v0_1``."""
    with np.load(DATA.parent / "v0_1" / "computed.npz") as arrays:
        return dict(arrays)


def test_files_of_version_0_1_act_and_judge_as_they_did(of_v0_1):
    folder = DATA.parent / "v0_1"
    model = FlowRL.load(folder / "model")
    observations, actions = th.as_tensor(of_v0_1["observations"]), th.as_tensor(of_v0_1["actions"])
    with th.no_grad():
        values = th.cat(model.critic(observations, actions), 1)
    np.testing.assert_allclose(values.numpy(), of_v0_1["values"], atol=1e-6)
    for player in (model, FlowActorCriticPolicy.load(folder / "policy.pth"), load_policy_safe(folder / "policy.safetensors")):
        predictions, _ = player.predict(of_v0_1["observations"], deterministic=True)
        np.testing.assert_allclose(predictions, of_v0_1["predictions"], atol=1e-6)


def test_a_checkpoint_of_version_0_1_goes_on_as_it_did(of_v0_1, tmp_path):
    shutil.copytree(DATA.parent / "v0_1" / "checkpoint", tmp_path / "run")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was made with")  # other versions of the packages
        model = FlowRL.load_checkpoint(tmp_path / "run", "Pendulum-v1", device="cpu")
    model.learn(100, reset_num_timesteps=False)
    predictions, _ = model.predict(of_v0_1["observations"], deterministic=True)
    np.testing.assert_allclose(predictions, of_v0_1["after"], atol=1e-4)
