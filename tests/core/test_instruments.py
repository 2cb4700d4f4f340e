"""The instruments, each by hand."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_flowrl.diagnostics import instruments


def test_action_spread_is_the_mean_standard_deviation_over_the_actions_of_a_state():
    # Two states that differ much, of one dimension: deviations of √2/2 and 0
    actions = th.tensor([[[0.5], [-0.9]], [[-0.5], [-0.9]]])
    assert instruments.action_spread(actions) == pytest.approx(2**0.5 / 4)


def test_saturated_share_counts_components_of_either_sign():
    assert instruments.saturated_share(th.tensor([[1.0, -0.995], [0.98, 0.0]])) == 0.5


def test_behavior_advantage():
    q_behavior, q_policy = th.tensor([[3.0], [1.0], [2.0], [0.0]]), th.tensor([[1.0], [2.0], [2.0], [-3.0]])
    assert instruments.behavior_advantage(q_behavior, q_policy) == (1.0, 0.5)  # 2, -1, 0 and 3


def test_discounted_returns():
    np.testing.assert_allclose(instruments.discounted_returns(np.array([1.0, 2.0, 4.0]), 0.5), [3.0, 4.0, 4.0])


@pytest.mark.parametrize(
    "length, terminated, gamma, n_steps",
    [
        (3, True, 0.99, 3),
        (3, False, 0.99, 0),
        (1000, False, 0.99, 542),  # 0.99^458 = 0.01002 is too much, 0.99^459 isn't
        (20, False, 0.5, 14),  # 0.5^7 = 0.0078
        (5, False, 0.1, 4),  # 0.1^2 is the bound itself
        (5, False, 0.0, 5),
        (5, False, 1.0, 0),
    ],
)
def test_steps_near_a_time_limit_have_no_known_return(length, terminated, gamma, n_steps):
    assert instruments.n_steps_with_known_return(length, terminated, gamma) == n_steps


@pytest.mark.parametrize(
    "singular_values, rank",
    [
        ([1.0, 1.0, 1.0, 1.0], 4),
        ([90.0, 9.5, 0.5, 0.0], 2),  # 90 % and 99.5 %
        ([90.0, 5.0, 5.0, 0.0], 3),
        ([99.5, 0.5, 0.0, 0.0], 1),
        ([0.0, 0.0, 0.0, 0.0], 0),
    ],
)
def test_effective_rank_counts_singular_values_up_to_99_percent(singular_values, rank):
    left, right = (th.linalg.qr(th.randn(size, 4, dtype=th.float64))[0] for size in (7, 5))
    features = left @ th.diag(th.tensor(singular_values, dtype=th.float64)) @ right.T
    assert instruments.effective_rank(features[None]) == rank


def test_effective_rank_is_the_mean_over_networks_and_nan_where_features_are():
    features = th.stack([th.eye(4), th.eye(4)[:1].expand(4, 4)])
    assert instruments.effective_rank(features) == 2.5
    assert np.isnan(instruments.effective_rank(features * th.inf))


def test_feature_norm():
    assert instruments.feature_norm(th.tensor([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [2.0, 0.0]]])) == 2.0  # 5, 1, 0, 2


@pytest.mark.parametrize("activation", [nn.ELU(), nn.GELU(), nn.ReLU()])
def test_units_are_dead_that_the_input_hardly_moves(activation):
    alive = th.linspace(-2, 2, 9)
    saturated = alive - 30  # an ELU stays at -1 there, the others at 0
    features = activation(th.stack([alive, -alive, saturated, alive + 1], dim=1))
    assert instruments.dead_share(features[None]) == 0.25
    assert instruments.dead_share(th.stack([features, th.full((9, 4), 7.0)])) == 0.625  # all of the second network's


@pytest.mark.parametrize("scale, dead", [(0.024, 0.5), (0.027, 0.0)])
def test_a_unit_is_dead_up_to_its_share_of_the_mean_deviation(scale, dead):
    # Of two deviations 1 and s, s is dead up to 0.025 · (1 + s) / 2; of four, one of which is s, up to 0.025 · (3 + s) / 4
    alive = th.linspace(-1, 1, 9)
    features = th.stack([alive, scale / 2 * alive], dim=1)
    assert instruments.dead_share(features[None]) == dead


def test_gradient_norm_and_cosine_are_of_all_parameters_together():
    ours, theirs = [th.tensor([[3.0]]), th.tensor([0.0, 4.0])], [th.tensor([[4.0]]), th.tensor([3.0, 0.0])]
    assert instruments.gradient_norm(ours) == 5
    assert instruments.gradient_cosine(ours, theirs) == pytest.approx(12 / 25)
    assert instruments.gradient_cosine(ours, [-2 * each for each in ours]) == pytest.approx(-1)
    assert np.isnan(instruments.gradient_cosine(ours, [0 * each for each in ours]))
