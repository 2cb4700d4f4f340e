"""Each equation against numbers worked out by hand."""

import pytest
import torch as th

from sb3_flowrl import losses


def column(*values: float) -> th.Tensor:
    return th.tensor(values).unsqueeze(1)


def test_clipped_min_is_taken_sample_by_sample():
    q_values = th.stack([column(1.0, 5.0), column(2.0, 3.0), column(4.0, 4.0)])
    assert th.equal(losses.clipped_min(q_values), column(1.0, 3.0))
    assert th.equal(losses.clipped_min(q_values[:1]), q_values[0])


def test_bootstrap_target_uses_each_samples_discount_and_stops_at_terminations():
    rewards, dones, discounts = column(1.0, 1.0, 1.0), column(0.0, 1.0, 0.0), column(0.5, 0.5, 0.25)
    targets = losses.bootstrap_target(rewards, dones, discounts, column(8.0, 8.0, 8.0))
    th.testing.assert_close(targets, column(5.0, 1.0, 3.0))
    th.testing.assert_close(losses.bootstrap_target(column(1.0), column(0.0), 0.5, column(8.0)), column(5.0))


def test_critic_loss_sums_the_networks_mean_squared_errors():
    loss = losses.critic_loss(th.stack([column(1.0, 2.0), column(0.0, 0.0)]), column(1.0, 4.0))
    assert loss.item() == pytest.approx((0 + 4) / 2 + (1 + 16) / 2)


def test_expectile_loss_weighs_the_two_signs():
    assert losses.expectile_loss(column(2.0), 0.9).item() == pytest.approx(0.9 * 4)
    assert losses.expectile_loss(column(-2.0), 0.9).item() == pytest.approx(0.1 * 4)
    errors = column(1.0, -3.0, 0.0)
    assert losses.expectile_loss(errors, 0.5).item() == pytest.approx(0.5 * errors.square().mean().item())


@pytest.mark.parametrize("expectile, expected", [(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)])
def test_expectile_loss_is_least_at_the_expectile(expectile, expected):
    # of a fair coin's two values 0 and 1 the τ-expectile is τ itself: τ(1 - v) = (1 - τ)v
    candidates = th.linspace(0, 1, 1001)
    values = [losses.expectile_loss(column(0.0, 1.0) - v, expectile).item() for v in candidates]
    assert candidates[int(th.tensor(values).argmin())].item() == pytest.approx(expected, abs=2e-3)


def test_flow_matching_error_is_a_mean_over_action_dimensions():
    errors = losses.flow_matching_error(th.tensor([[1.0, 2.0], [0.0, 0.0]]), th.tensor([[0.0, 0.0], [3.0, 0.0]]))
    th.testing.assert_close(errors, column(2.5, 4.5))


def test_weights_act_per_sample_or_through_their_mean():
    errors, weights = column(1.0, 3.0), column(0.0, 1.0)
    assert losses.weighted_flow_matching_loss(errors, weights, per_sample=True).item() == pytest.approx(1.5)
    assert losses.weighted_flow_matching_loss(errors, weights, per_sample=False).item() == pytest.approx(0.5 * 2.0)


def test_the_actor_maximises_q_and_minimises_the_constraint():
    q_policy = column(1.0, 3.0).requires_grad_()
    constraint = th.tensor(0.5, requires_grad=True)
    loss = losses.negative_lagrangian(q_policy, constraint)
    assert loss.item() == pytest.approx(-1.5)
    loss.backward()
    th.testing.assert_close(q_policy.grad, column(-0.5, -0.5))
    assert constraint.grad.item() == 1.0
