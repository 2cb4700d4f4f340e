"""A Q_π that is normalised by batch and has no target network, as CrossQ's."""

import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from sb3_flowrl import DiagnosticsCallback, FlowActorCriticPolicy, FlowRL, update
from sb3_flowrl.networks import create_normed_mlp
from sb3_flowrl.stacked import StackedBatchNorm, StackedMLP
from tests.models import ScaleExtractor, assert_same, batch_of, make_model, noise_of, parameters, trained_model

NET = dict(net_arch=[16], batch_norm=True)


def make_networks() -> list[nn.Sequential]:
    th.manual_seed(0)
    networks = [create_normed_mlp(3, 1, [16, 8], nn.ReLU, batch_norm=True) for _ in range(2)]
    kinds = [*[nn.BatchNorm1d, nn.Linear, nn.ReLU] * 2, nn.BatchNorm1d, nn.Linear]
    assert all(isinstance(layer, kind) for layer, kind in zip(networks[0], kinds, strict=True))
    return networks


@pytest.mark.parametrize("evaluate", [StackedMLP._one_by_one, StackedMLP._batched])  # on a CPU, and elsewhere
def test_a_stack_normalises_as_its_networks_would(evaluate):
    networks = make_networks()
    stack = StackedMLP(networks)
    for by_batch in (True, True, False):
        x = 3.0 * th.randn(32, 3) + 2.0
        expected = th.stack([network.train(by_batch)(x) for network in networks])
        th.testing.assert_close(evaluate(stack, x, by_batch), expected, rtol=1e-4, atol=1e-5)
    for index, network in enumerate(networks):
        for ours, theirs in zip(stack, network, strict=True):
            if isinstance(ours, StackedBatchNorm):
                th.testing.assert_close(ours.running_mean[index], theirs.running_mean)
                th.testing.assert_close(ours.running_var[index], theirs.running_var)


@pytest.mark.parametrize("evaluate", [StackedMLP._one_by_one, StackedMLP._batched])
def test_a_stack_has_the_gradients_of_its_networks(evaluate):
    networks = make_networks()
    stack = StackedMLP(networks)
    x = th.randn(32, 3)
    evaluate(stack, x, True).square().sum().backward()
    th.stack([network(x) for network in networks]).square().sum().backward()
    for ours, *theirs in zip(stack.parameters(), *(network.parameters() for network in networks), strict=True):
        th.testing.assert_close(ours.grad, th.stack([each.grad for each in theirs]), rtol=1e-3, atol=1e-4)


def test_moments_that_are_not_finite_leave_nothing_behind():
    stack = StackedMLP(make_networks())
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    stack(th.tensor([[th.inf, 0.0, 0.0], [0.0, 1.0, 2.0]]), by_batch=True)
    assert all(value.isfinite().all() for value in stack.state_dict().values())
    assert th.equal(stack[0].running_mean[:, 0], before["0.running_mean"][:, 0])
    assert not th.equal(stack[0].running_mean[:, 1], before["0.running_mean"][:, 1])


def test_both_states_are_normalised_by_the_moments_of_both():
    critic = make_model(policy_kwargs=NET).critic
    here, there = th.randn(8, 3), 5.0 + th.randn(8, 3)
    actions, next_actions = th.rand(2, 8, 1).unbind()
    values, next_values = critic.joint_q(here, actions, there, next_actions)
    assert values.shape == next_values.shape == (2, 8, 1)
    x = th.cat([th.cat([here, actions], 1), th.cat([there, next_actions], 1)])
    normalised = (x - x.mean(0)) * th.rsqrt(x.var(0, correction=0) + 1e-3)
    seen = []
    critic.networks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    critic.networks._batched(x, True)
    th.testing.assert_close(seen[0][0], normalised)
    swapped = critic.joint_q(there, next_actions, here, actions)
    th.testing.assert_close(swapped[1], values, rtol=1e-4, atol=1e-5)


def test_running_moments_follow_by_a_hundredth():
    stack = StackedMLP(make_networks())
    x = 3.0 * th.randn(32, 3) + 2.0
    stack(x, by_batch=True)
    th.testing.assert_close(stack[0].running_mean[0], 0.01 * x.mean(0))
    th.testing.assert_close(stack[0].running_var[0], 0.99 + 0.01 * x.var(0))


@pytest.mark.parametrize("critic_layout", ["mlp", "reference"])
def test_no_parameter_is_trained_by_rounding_errors(critic_layout):
    """A bias that the next normalisation cancels would be: Adam makes whole steps of gradients of any size."""
    model = trained_model(policy_kwargs=dict(net_arch=[16, 16, 16], batch_norm=True, critic_layout=critic_layout))
    loss, _, _ = update.value_loss(model.policy, model.settings, batch_of(model, 32), noise_of(model, 32))
    names, critic = zip(*model.critic.networks.named_parameters(), strict=True)
    gradients = th.autograd.grad(loss, critic)
    largest = {name: gradient.abs().max().item() for name, gradient in zip(names, gradients, strict=True)}
    assert all(value > 1e-4 for value in largest.values()), largest


def test_q_bootstraps_from_itself_and_the_others_from_their_targets():
    model = trained_model(policy_kwargs=NET)
    assert model.critic_target is None and model.behavior_critic_target is not None
    assert not any(
        isinstance(layer, StackedBatchNorm) for layer in (*model.behavior_critic.networks, *model.behavior_value.networks)
    )
    batch, noise = batch_of(model, 32), noise_of(model, 32)
    _, terms, _ = update.value_loss(model.policy, model.settings, batch, noise)
    next_actions = model.actor.act(batch.next_observations, noise.next_action)
    here, there = th.cat([batch.observations, batch.actions], 1), th.cat([batch.next_observations, next_actions], 1)
    q, next_q = model.critic.networks(th.cat([here, there]), by_batch=True).detach().requires_grad_().split(32, dim=1)
    target = batch.rewards + batch.discounts * (1 - batch.dones) * next_q.min(dim=0).values
    th.testing.assert_close(terms["critic_loss"], (q - target).square().mean(dim=(1, 2)).sum())
    assert not model.critic.joint_q(*batch[:2], batch.next_observations, next_actions)[1].isnan().any()


def test_every_network_and_the_running_moments_move():
    model = make_model(policy_kwargs=NET)
    before = parameters(model)
    after = parameters(model.learn(70))
    for part in ("actor", "critic", "behavior_critic", "behavior_critic_target", "behavior_value"):
        assert any(not th.equal(before[name], after[name]) for name in before if name.startswith(f"{part}.")), part
    moments = [name for name in before if "running_" in name]
    assert moments and all(not th.equal(before[name], after[name]) for name in moments)
    assert all(value.isfinite().all() for value in after.values())


def test_values_do_not_depend_on_what_else_is_in_the_batch():
    model = trained_model(policy_kwargs=NET)
    before = parameters(model)
    features, actions = th.randn(8, 3), th.rand(8, 1)
    together = model.critic.q(features, actions)
    alone = th.cat([model.critic.q(f, a) for f, a in zip(features.split(1), actions.split(1), strict=True)], dim=1)
    th.testing.assert_close(together, alone)
    assert_same(before, parameters(model))


@pytest.mark.parametrize("share_features_extractor", [False, True])
def test_features_extractors_that_learn(share_features_extractor):
    extractor = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=1.0))
    model = make_model(policy_kwargs={**NET, **extractor, "share_features_extractor": share_features_extractor})
    before = parameters(model)
    after = parameters(model.learn(70))
    extractors = [name for name in before if "features_extractor" in name]
    assert extractors and any(not th.equal(before[name], after[name]) for name in extractors)


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(tmp_path):
    model = trained_model(policy_kwargs=NET, spread_coef="auto")
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    alone = FlowActorCriticPolicy.load(tmp_path / "policy", device="cpu")
    assert_same(dict(model.policy.state_dict()), dict(alone.state_dict()))
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    assert_same(parameters(model), parameters(loaded))
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        set_random_seed(11)
        each.train(4, batch_size=16)
    assert_same(parameters(model), parameters(loaded))


def test_instruments_measure_it():
    callback = DiagnosticsCallback(every=60)
    model = make_model(policy_kwargs=NET, spread_coef="auto")
    model.learn(130, callback=callback)
    measured = callback.measure()
    assert measured["critic_rank"] > 0 and measured["critic_feature_norm"] > 0 and measured["action_spread"] > 0
