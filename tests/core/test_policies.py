"""The networks and the policy that holds them."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_flowrl import FlowActorCriticPolicy
from sb3_flowrl.networks import FlowActor, create_normed_mlp
from sb3_flowrl.stacked import StackedActivation, StackedLayerNorm, StackedLinear
from tests.golden import NETWORKS
from tests.models import ScaleExtractor

OBS_SPACE = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)
ACTION_SPACE = spaces.Box(np.array([-2.0, 0.0], dtype=np.float32), np.array([1.0, 5.0], dtype=np.float32))


def make_policy(observation_space: spaces.Space = OBS_SPACE, **kwargs) -> FlowActorCriticPolicy:
    """A policy with all of its networks: where Q_π is normalised by batch, it has no target."""
    small = {"net_arch": [8], "batch_norm": False}
    return FlowActorCriticPolicy(observation_space, ACTION_SPACE, lambda _: 3e-4, **{**small, **kwargs})


def layer_names(network: Iterable[nn.Module]) -> list[str]:
    """The layers' classes; of an activation in a stack, that of the activation."""
    layers = [layer.layers[0] if isinstance(layer, StackedActivation) else layer for layer in network]
    return [type(layer).__name__.removeprefix("Stacked") for layer in layers]


def test_an_entry_of_net_arch_is_one_linear_layernorm_activation_block():
    policy = make_policy(net_arch=dict(pi=[8], qf=[8, 4]), activation_fn=dict(pi=nn.ELU, qf=nn.GELU))
    assert layer_names(policy.actor.velocity_net) == ["Linear", "LayerNorm", "ELU", "Linear"]
    critic_layers = ["Linear", "LayerNorm", "GELU", "Linear", "LayerNorm", "GELU", "Linear"]
    for model in (policy.critic, policy.behavior_critic, policy.behavior_value):
        assert layer_names(model.networks) == critic_layers
    # input: state, action and time; state and action; state
    assert policy.actor.velocity_net[0].in_features == 3 + 2 + 1
    assert policy.critic.networks[0].weight.shape == (2, 8, 3 + 2)
    assert policy.behavior_value.networks[0].weight.shape == (1, 8, 3)


def test_defaults_are_those_of_the_runs_that_justify_them():
    policy = FlowActorCriticPolicy(OBS_SPACE, ACTION_SPACE, lambda _: 1e-3)
    assert layer_names(policy.critic.networks) == ["BatchNorm", "Linear", "ReLU"] * 2 + ["BatchNorm", "Linear"]
    assert policy.critic_target is None
    for model in (policy.behavior_critic, policy.behavior_value):
        assert layer_names(model.networks) == ["Linear", "LayerNorm", "ReLU"] * 2 + ["Linear"]
    assert layer_names(policy.actor.velocity_net) == ["Linear", "LayerNorm", "ReLU"] * 2 + ["Linear"]
    shapes = [layer.weight.shape[:2] for layer in policy.critic.networks if isinstance(layer, StackedLinear)]
    assert shapes == [(2, 256), (2, 256), (2, 1)]
    assert [layer.out_features for layer in policy.actor.velocity_net if isinstance(layer, nn.Linear)] == [256, 256, 2]


def test_reference_layout_has_no_activation_at_its_ends():
    policy = make_policy(net_arch=dict(pi=[8], qf=[8] * 4), critic_layout="reference", activation_fn=nn.GELU)
    block, bare = ["Linear", "LayerNorm", "GELU"], ["Linear", "LayerNorm"]
    for model in (policy.critic, policy.behavior_value):
        assert layer_names(model.networks) == bare + block + block + bare + ["Linear"]


def test_layer_norm_can_be_left_out_everywhere():
    policy = make_policy(layer_norm=False)
    norms = (nn.LayerNorm, StackedLayerNorm)
    assert not any(isinstance(module, norms) for module in policy.modules())
    assert all(any(isinstance(module, norm) for module in make_policy().modules()) for norm in norms)


def test_activation_fn_is_one_for_all_or_one_for_each():
    one = make_policy(activation_fn=nn.Tanh)
    assert isinstance(one.actor.velocity_net[2], nn.Tanh) and isinstance(one.critic.networks[2].layers[0], nn.Tanh)
    each = make_policy(activation_fn=dict(pi=nn.ReLU, qf=nn.Mish))
    assert isinstance(each.actor.velocity_net[2], nn.ReLU) and isinstance(each.behavior_value.networks[2].layers[0], nn.Mish)


@pytest.mark.parametrize("n_critics", [1, 3])
def test_n_critics(n_critics):
    policy = make_policy(n_critics=n_critics)
    obs, actions = th.zeros(5, 3), th.zeros(5, 2)
    for critic in (policy.critic, policy.critic_target, policy.behavior_critic, policy.behavior_critic_target):
        values = critic(obs, actions)
        assert isinstance(values, tuple) and [value.shape for value in values] == [(5, 1)] * n_critics
    assert policy.behavior_value(obs).shape == (5, 1)


def test_linear_networks():
    policy = make_policy(net_arch=[])
    assert layer_names(policy.actor.velocity_net) == layer_names(policy.critic.networks) == ["Linear"]
    action, _ = policy.predict(np.zeros(3))
    assert action in ACTION_SPACE


def test_initialisation_is_xavier_uniform_with_zero_biases():
    th.manual_seed(0)
    layer = create_normed_mlp(300, 1, [500], nn.GELU)[0]
    bound = (6 / 800) ** 0.5
    assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not layer.bias.any()


def test_a_fresh_policys_critics_are_equal():
    policy = make_policy()
    for name in ("critic_target", "behavior_critic", "behavior_critic_target"):
        for ours, theirs in zip(policy.critic.parameters(), getattr(policy, name).parameters(), strict=True):
            assert th.equal(ours, theirs) and ours is not theirs


def test_target_networks_stay_in_eval_mode():
    policy = make_policy()
    for mode in (True, False, False, True):
        policy.set_training_mode(mode)
        for name in NETWORKS:
            for module in getattr(policy, name).modules():
                assert module.training == (mode and "target" not in name), name


class DropoutExtractor(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.parts = nn.Sequential(nn.Sequential(nn.Dropout(0.5)))

    def forward(self, observations):
        return self.parts(super().forward(observations))


@pytest.mark.parametrize("part", ["features_extractor", "features_extractor.parts.0.0", "velocity_net"])
@pytest.mark.parametrize("who", ["policy", "actor"])
def test_predicting_puts_every_part_in_evaluation_mode(part, who):
    policy = make_policy(features_extractor_class=DropoutExtractor)
    policy.set_training_mode(False)
    policy.actor.register_module("nothing", None)
    policy.actor.get_submodule(part).train()
    actions = [(policy if who == "policy" else policy.actor).predict(np.ones(3), deterministic=True)[0] for _ in range(20)]
    np.testing.assert_array_equal(actions, actions[:1] * 20)
    policy.critic.features_extractor.train()
    policy.predict(np.ones(3))
    assert not any(module.training for module in policy.modules())


def test_training_puts_every_part_in_training_mode_as_the_part_itself_understands_it():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    policy = make_policy(features_extractor_class=DropoutExtractor)
    policy.actor.features_extractor.parts.append(Frozen(3))
    policy.set_training_mode(True)
    policy.actor.features_extractor.parts[0].eval()
    policy.set_training_mode(True)
    assert policy.actor.features_extractor.parts[0][0].training
    assert not policy.actor.features_extractor.parts[1].training


def test_every_network_but_the_targets_has_an_optimizer_for_all_its_parameters():
    policy = make_policy()
    for name in NETWORKS:
        model = getattr(policy, name)
        if "target" in name:
            assert not hasattr(model, "optimizer")
        else:
            optimized = [id(p) for group in model.optimizer.param_groups for p in group["params"]]
            assert optimized == [id(p) for p in model.parameters()]


def test_optimizer_arguments():
    defaults = make_policy().actor.optimizer.defaults
    assert defaults["fused"] and defaults["betas"] == (0.5, 0.999)
    assert not make_policy(optimizer_kwargs=dict(eps=1e-5)).actor.optimizer.defaults["fused"]
    assert isinstance(make_policy(optimizer_class=th.optim.SGD).critic.optimizer, th.optim.SGD)


def test_custom_features_extractor_belongs_to_each_network():
    policy = make_policy(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=2.0))
    extractors = [getattr(policy, name).features_extractor for name in NETWORKS]
    assert len({id(extractor) for extractor in extractors}) == len(NETWORKS)
    obs = th.randn(4, 3)
    th.testing.assert_close(policy.actor.features(obs), 2 * obs)


def test_a_shared_features_extractor_is_the_actors_and_learned_from_its_loss_only():
    kwargs = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=2.0))
    policy = make_policy(share_features_extractor=True, **kwargs)
    shared = policy.actor.features_extractor
    for model in (policy.critic, policy.behavior_critic, policy.behavior_value):
        assert model.features_extractor is shared
        assert not any(p is shared.scale for group in model.optimizer.param_groups for p in group["params"])
        assert not model.features(th.ones(2, 3)).requires_grad
    assert any(p is shared.scale for group in policy.actor.optimizer.param_groups for p in group["params"])
    assert policy.actor.features(th.ones(2, 3)).requires_grad
    targets = [policy.critic_target.features_extractor, policy.behavior_critic_target.features_extractor]
    assert shared is not targets[0] is not targets[1] and shared is not targets[1]
    assert all(target.scale == shared.scale for target in targets)


@pytest.mark.parametrize(("normalize_images", "brightest"), [(True, 1.0), (False, 255.0)])
def test_every_network_normalises_images_once_or_not_at_all(normalize_images, brightest):
    images = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = make_policy(observation_space=images, normalize_images=normalize_images)
    obs = th.full((2, *images.shape), 255, dtype=th.uint8)
    for name in NETWORKS:
        assert getattr(policy, name).features(obs).unique().tolist() == [brightest], name


def test_deterministic_prediction_starts_at_the_mode_of_the_noise():
    policy = make_policy(flow_steps=3)
    obs = th.randn(4, 3)
    with th.no_grad():
        expected = policy.actor.flow(obs, th.zeros(4, 2))
        assert th.equal(policy.actor(obs, deterministic=True), expected)
        assert th.equal(policy(obs, deterministic=True), expected)
        assert not th.equal(policy.actor(obs), policy.actor(obs))


def test_stochastic_prediction_comes_from_the_global_generator():
    policy = make_policy()
    draws = []
    for _ in range(2):
        th.manual_seed(3)
        draws.append([policy.predict(np.zeros(3))[0] for _ in range(3)])
    np.testing.assert_array_equal(*draws)
    assert not np.array_equal(draws[0][0], draws[0][1])


def test_noise_clip_bounds_the_base_sample():
    def largest_base_sample(noise_clip) -> float:
        policy = make_policy(noise_clip=noise_clip)
        for parameter in policy.actor.velocity_net.parameters():
            nn.init.zeros_(parameter)  # the flow stands still: the action is tanh(a0)
        return th.atanh(policy.actor(th.zeros(2_000, 3))).abs().max().item()

    assert largest_base_sample(1.0) == pytest.approx(1.0, abs=1e-5)
    assert largest_base_sample(0.25) == pytest.approx(0.25, abs=1e-5)
    assert largest_base_sample(None) > 2.5


@pytest.mark.parametrize("ode_solver, evaluations", [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_flow_steps_and_solver_reach_the_actor(ode_solver, evaluations):
    policy = make_policy(ode_solver=ode_solver, flow_steps=3)
    calls = []
    policy.actor.velocity_net.register_forward_hook(lambda *args: calls.append(1))
    policy.predict(np.zeros(3))
    assert len(calls) == 3 * evaluations


@pytest.mark.parametrize("shape", [(3,), (1, 3), (7, 3)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_have_the_right_shape_and_stay_inside_the_bounds(shape, deterministic):
    policy = make_policy()
    with th.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(100.0)  # saturates the squashing
    actions, state = policy.predict(np.random.default_rng(0).normal(size=shape), deterministic=deterministic)
    assert state is None and actions.shape == (*shape[:-1], 2) and actions.dtype == np.float32
    assert (actions >= ACTION_SPACE.low).all() and (actions <= ACTION_SPACE.high).all()


def test_unscaled_actions_stay_inside_bounds_that_round_badly():
    rng = np.random.default_rng(0)
    low, high = (rng.uniform(*bounds, 10_000).astype(np.float32) for bounds in ((-3, 0), (0.1, 5)))
    space = spaces.Box(low, high)
    actor = FlowActorCriticPolicy(OBS_SPACE, space, lambda _: 3e-4, net_arch=[]).actor
    for end in (-1.0, 1.0):
        assert actor.unscale_action(np.full(10_000, end, dtype=np.float32)) in space
    naive = space.low + (0.5 * (np.float32(1.0) + np.float32(1.0)) * (space.high - space.low))
    assert (naive > space.high).any(), "the test needs bounds that round upwards"


def test_weights_from_the_unit_interval_do_not_give_nan():
    policy = make_policy()
    policy.load_from_vector(np.random.default_rng(0).random(len(policy.parameters_to_vector())))
    action, _ = policy.predict(np.zeros((4, 3)))
    assert np.isfinite(action).all()


ALL_ARGUMENTS = dict(
    net_arch=dict(pi=[8], qf=[6, 5, 4]),
    activation_fn=dict(pi=nn.ReLU, qf=nn.Mish),
    layer_norm=False,
    critic_layout="reference",
    features_extractor_class=ScaleExtractor,
    features_extractor_kwargs=dict(scale=2.0),
    normalize_images=False,
    optimizer_class=th.optim.RMSprop,
    optimizer_kwargs=dict(alpha=0.5),
    n_critics=3,
    share_features_extractor=True,
    flow_steps=3,
    ode_solver="rk4",
    noise_clip=0.5,
)


@pytest.mark.parametrize("kwargs", [{}, ALL_ARGUMENTS], ids=["defaults", "everything changed"])
@pytest.mark.parametrize("part", ["policy", "actor"])
def test_policy_and_actor_save_and_load_alone(tmp_path, kwargs, part):
    policy = make_policy(**kwargs)
    saved = policy if part == "policy" else policy.actor
    saved.save(tmp_path / "part.pt")
    loaded = type(saved).load(tmp_path / "part.pt")
    assert isinstance(loaded, FlowActorCriticPolicy if part == "policy" else FlowActor)
    for (name, ours), (loaded_name, theirs) in zip(saved.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == loaded_name and th.equal(ours, theirs)
    obs = np.random.default_rng(0).normal(size=(5, 3))
    for deterministic in (True, False):
        predictions = []
        for model in (policy, saved, loaded):
            th.manual_seed(0)
            predictions.append(model.predict(obs, deterministic=deterministic)[0])
        np.testing.assert_array_equal(predictions[0], predictions[1])
        np.testing.assert_array_equal(predictions[0], predictions[2])
    if part == "policy":
        constructor_parameters = loaded._get_constructor_parameters()
        for name, value in kwargs.items():
            assert constructor_parameters[name] == value, name
        assert type(loaded.actor.optimizer) is type(policy.actor.optimizer)


def test_state_dict_holds_floating_point_tensors_only():
    assert all(value.is_floating_point() for value in make_policy().state_dict().values())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(critic_layout="authors"), r"critic_layout='authors' is unknown; choose one of 'mlp', 'reference'"),
        (dict(critic_layout="reference", net_arch=[8, 8]), r"qf=\[8, 8\] the critics would have none"),
        (dict(activation_fn=dict(pi=nn.ReLU)), r"with the keys 'pi' and 'qf'"),
        (dict(n_critics=0), r"n_critics=0 must be an integer of at least 1"),
    ],
)
def test_errors_name_the_argument_and_the_remedy(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**kwargs)
