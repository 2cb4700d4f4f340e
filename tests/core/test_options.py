"""What FlowRL's own arguments mean for its losses."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_flowrl import FlowRL, flowrl, losses, update
from sb3_flowrl.flow import FlowNoise
from tests.models import batch_of, moments, noise_of, trained_model


def actor_loss_of(model: FlowRL) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """The actor's loss of a model on a batch and noise that depend on nothing else."""
    th.manual_seed(7)
    np.random.seed(7)
    batch, noise = batch_of(model, 64), noise_of(model, 64)
    with th.no_grad():
        q_behavior = losses.clipped_min(model.critic.q(batch.observations, batch.actions))
    loss, terms = update.actor_loss(model.policy, model.settings, batch, noise, q_behavior)
    return loss, {name: term.detach() for name, term in terms.items()}


def test_guidance_may_be_a_callable_that_returns_the_final_weights():
    def guidance(q_behavior, q_policy, w2_coef):
        assert q_behavior.shape == q_policy.shape == (64, 1) and not q_policy.requires_grad
        return 2 * w2_coef * th.ones_like(q_policy)

    model = trained_model()
    model.guidance, model.w2_coef = guidance, 0.3
    _, logs = actor_loss_of(model)
    assert logs["guidance_weight"].item() == pytest.approx(0.6)
    th.testing.assert_close(logs["weighted_flow_matching_loss"], 0.6 * logs["flow_matching_loss"])


def test_guidance_of_the_wrong_shape_is_an_error():
    model = trained_model()
    model.guidance = lambda q_behavior, q_policy, w2_coef: q_policy.mean()
    with pytest.raises(ValueError, match=r"returned weights of shape \(\); .* of shape \(64, 1\)"):
        actor_loss_of(model)


def test_guidance_active_is_the_share_of_samples_where_the_behavior_did_better():
    model = trained_model()
    model.guidance = lambda q_behavior, q_policy, w2_coef: (q_behavior > q_policy).float()
    _, logs = actor_loss_of(model)
    assert 0 < logs["guidance_active"] < 1
    assert logs["guidance_active"] == logs["guidance_weight"]


def test_w2_coef_zero_leaves_the_constraint_out():
    _, logs = actor_loss_of(trained_model(w2_coef=0.0, spread_coef=0.0))
    assert logs["weighted_flow_matching_loss"] == 0 and logs["flow_matching_loss"] > 0
    th.testing.assert_close(logs["actor_loss"], -logs["q_policy"])


def test_per_sample_and_scalar_weights_differ_only_in_the_constraint():
    model = trained_model()
    _, per_sample = actor_loss_of(model)
    model.per_sample = False
    _, scalar = actor_loss_of(model)
    th.testing.assert_close(scalar["weighted_flow_matching_loss"], scalar["guidance_weight"] * scalar["flow_matching_loss"])
    assert not th.isclose(scalar["weighted_flow_matching_loss"], per_sample["weighted_flow_matching_loss"])
    assert scalar["flow_matching_loss"] == per_sample["flow_matching_loss"]


def test_matching_says_what_the_velocity_field_is_regressed_onto(monkeypatch):
    """A field that stands still has the error of the path's own velocity: of a - a0, or of atanh(a) - a0."""
    model = trained_model(noise_clip=0.5)
    for parameter in model.actor.velocity_net.parameters():
        nn.init.zeros_(parameter)
    batch = batch_of(model, 64)
    noise = FlowNoise(th.randn(64, 1), th.randn(64, 1), th.randn(64, 1), th.rand(64, 1))
    base_points = noise.path.clamp(-0.5, 0.5)
    for matching, end_points in (("action", batch.actions), ("pre_squash", batch.actions.clamp(-0.999, 0.999).atanh())):
        model.matching = matching
        _, logs = update.actor_loss(model.policy, model.settings, batch, noise, th.zeros(64, 1))
        th.testing.assert_close(logs["flow_matching_loss"], (end_points - base_points).square().mean())


def test_weights_use_q_behavior_from_before_and_q_policy_from_after_the_value_step(monkeypatch):
    model = trained_model()
    model._n_updates = 0
    batch, noise = batch_of(model, 16), noise_of(model, 16)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda size, env=None: batch)
    monkeypatch.setattr(flowrl, "draw_noise", lambda batch_size, action_dim, device: noise)
    seen = {}
    model.guidance = lambda q_behavior, q_policy, w2_coef: (
        seen.update(q_behavior=q_behavior, q_policy=q_policy) or th.ones_like(q_policy)
    )
    with th.no_grad():
        q_behavior_before = losses.clipped_min(th.stack(model.behavior_critic(batch.observations, batch.actions)))
        actions = model.actor.flow(batch.observations, noise.action)
        q_policy_before = losses.clipped_min(th.stack(model.critic(batch.observations, actions)))
    model.train(1, batch_size=16)
    with th.no_grad():
        q_policy_after = losses.clipped_min(th.stack(model.critic(batch.observations, actions)))
    th.testing.assert_close(seen["q_behavior"], q_behavior_before)
    th.testing.assert_close(seen["q_policy"], q_policy_after)
    assert not th.allclose(seen["q_policy"], q_policy_before)


def test_bfloat16_runs_the_layers_in_half_precision_and_keeps_losses_near(monkeypatch):
    model = trained_model(policy_kwargs=dict(net_arch=[64, 64]))
    _, exact = actor_loss_of(model)
    dtypes = []
    linear = th.nn.functional.linear
    monkeypatch.setattr(
        th.nn.functional, "linear", lambda *args, **kwargs: dtypes.append((y := linear(*args, **kwargs)).dtype) or y
    )
    model.precision = "bfloat16"
    _, mixed = actor_loss_of(model)
    # three times the velocity field, once each of the twin critic, three layers each
    assert dtypes[-15:] == [th.bfloat16] * (3 + 2) * 3
    assert mixed["actor_loss"].dtype == th.float32
    assert not th.equal(mixed["actor_loss"], exact["actor_loss"])
    for name in ("actor_loss", "flow_matching_loss", "q_policy"):
        th.testing.assert_close(mixed[name], exact[name], rtol=0.05, atol=0.02)
    model.train(2, batch_size=16)
    assert all(parameter.dtype == th.float32 for parameter in model.policy.parameters())
    assert all(value.dtype == th.float32 for value in moments(model).values())


def test_bfloat16_gradients_point_where_the_exact_ones_do():
    """For every weight: autocast must not hand a weight that was cast without gradient to a loss that needs one."""
    model = trained_model(policy_kwargs=dict(net_arch=[64, 64]))
    batch, noise = batch_of(model, 256), noise_of(model, 256)
    gradients = {}
    for precision in ("float32", "bfloat16"):
        settings = model.settings._replace(precision=precision)
        value_loss, _, q_behavior = update.value_loss(model.policy, settings, batch, noise)
        actor_loss, _ = update.actor_loss(model.policy, settings, batch, noise, q_behavior)
        values = [*model.critic.parameters(), *model.behavior_critic.parameters(), *model.behavior_value.parameters()]
        of_values, of_actor = th.autograd.grad(value_loss, values), th.autograd.grad(
            actor_loss, list(model.actor.parameters())
        )
        gradients[precision] = [*of_values, *of_actor]
    for exact, mixed in zip(gradients["float32"], gradients["bfloat16"], strict=True):
        assert th.cosine_similarity(exact.flatten(), mixed.flatten(), dim=0) > 0.98
