"""The spread of the policy's actions: its measure, the coefficient that is learned, and what they do to a policy."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed

from sb3_flowrl import FlowRL, losses
from sb3_flowrl.diagnostics.callback import policy_actions, sample_replay
from sb3_flowrl.diagnostics.instruments import action_spread
from tests.models import assert_same, make_model, parameters, trained_model


@pytest.mark.parametrize("sigma, measured", [(0.05, 0.069), (0.1, 0.118), (0.16, 0.178), (0.3, 0.318), (1.0, 1.018)])
def test_log_spread_of_gaussian_samples_is_the_logarithm_of_their_standard_deviation_up_to_its_floor(sigma, measured):
    actions, others = sigma * th.randn(2, 100_000, 2, generator=th.manual_seed(0))
    spread = losses.log_spread(actions, others)
    assert spread.shape == (100_000, 1)
    assert spread.mean().exp().item() == pytest.approx(measured, rel=0.01)


def test_log_spread_of_different_dimensions_is_that_of_their_geometric_mean():
    actions, others = th.tensor([0.2, 0.8]) * th.randn(2, 100_000, 2, generator=th.manual_seed(0))
    assert losses.log_spread(actions, others).mean().exp().item() == pytest.approx(0.4, rel=0.07)


def test_evenly_spread_actions_have_just_more_than_the_largest_target():
    actions, others = 2 * th.rand(2, 100_000, 2, generator=th.manual_seed(0)) - 1
    assert losses.log_spread(actions, others).mean().exp().item() == pytest.approx(0.613, rel=0.01)


def test_log_spread_is_finite_where_actions_are_equal_and_pulls_them_apart_the_more_the_closer_they_are():
    actions = th.tensor([[0.5], [0.5]], requires_grad=True)
    others = th.tensor([[0.5], [0.4]])
    spread = losses.log_spread(actions, others)
    assert spread.isfinite().all() and spread[0] < spread[1]
    (gradient,) = th.autograd.grad(losses.log_spread(actions, th.tensor([[0.45], [0.0]])).sum(), actions)
    assert gradient[0] > gradient[1] > 0
    # Closer than the floor the pull fades, so that equal actions, where it has no direction, are no singularity
    near = th.tensor([[0.001], [0.01], [0.02]], requires_grad=True)
    (gradient,) = th.autograd.grad(losses.log_spread(near, th.zeros(3, 1)).sum(), near)
    assert 0 < gradient[0] < gradient[1] < gradient[2]


def test_coefficient_rises_where_actions_are_too_close_and_falls_where_they_are_not():
    # Descent: a negative gradient makes it rise
    assert losses.spread_coef_gradient(th.tensor(math.log(0.1)), 0.2) < 0 < losses.spread_coef_gradient(th.tensor(0.0), 0.2)
    assert losses.spread_coef_gradient(th.tensor(math.log(0.2)), 0.2).item() == pytest.approx(0.0, abs=1e-6)


def trained(**options) -> FlowRL:
    model = make_model(learning_rate=3e-3, **options).learn(60)
    set_random_seed(1)
    for _ in range(150):
        model.train(2, batch_size=32)
    return model


def spread_of(model: FlowRL) -> float:
    set_random_seed(2)
    return action_spread(policy_actions(model, sample_replay(model, 64).observations))


def test_a_policy_spreads_out_with_the_coefficient():
    without, with_it = (spread_of(trained(spread_coef=coef)) for coef in (0.0, 1.0))
    assert with_it > without + 0.1


def test_learned_coefficient_brings_the_spread_to_its_target():
    narrow, wide = (trained(spread_coef="auto_10", target_spread=target, learning_starts=50) for target in (0.05, 0.6))
    assert spread_of(narrow) < spread_of(wide)
    coefficients = [model.log_spread_coef.exp().item() for model in (narrow, wide)]
    assert coefficients[0] < 10 and coefficients[0] < coefficients[1]


@pytest.mark.parametrize("spread_coef", ["auto_0.5", 0.5])
def test_coefficient_starts_as_asked_and_is_learned_if_asked(spread_coef):
    model = make_model(spread_coef=spread_coef)
    assert model._current_spread_coef().item() == pytest.approx(0.5)
    model.learn(70)
    assert (model._current_spread_coef().item() == pytest.approx(0.5)) == (spread_coef == 0.5)
    assert model.logger.name_to_value["train/spread_coef"] == pytest.approx(model._current_spread_coef().item())
    assert np.isfinite(model.logger.name_to_value["train/log_spread"])


def test_a_coefficient_that_is_not_learned_can_be_changed(tmp_path):
    model = trained_model(spread_coef=0.5)
    model.save(tmp_path / "model")
    assert FlowRL.load(tmp_path / "model")._current_spread_coef().item() == pytest.approx(0.5)
    assert FlowRL.load(tmp_path / "model", spread_coef=0.1)._current_spread_coef().item() == pytest.approx(0.1)
    assert FlowRL.load(tmp_path / "model", spread_coef=0)._current_spread_coef() is None
    model.spread_coef = 0.25
    model.train(2, batch_size=8)
    assert model.logger.name_to_value["train/spread_coef"] == pytest.approx(0.25)


def test_learned_and_given_coefficients_are_not_taken_for_each_other(tmp_path):
    learned, given = trained_model(spread_coef="auto"), trained_model(spread_coef=0.5)
    learned.save(tmp_path / "learned")
    given.save(tmp_path / "given")
    for value in (0.0, 0.5):
        with pytest.raises(RuntimeError, match=rf"spread_coef is learned, but this model has spread_coef={value}\."):
            FlowRL.load(tmp_path / "learned", spread_coef=value)
    with pytest.raises(RuntimeError, match="spread_coef is not learned, but this model has spread_coef='auto'"):
        FlowRL.load(tmp_path / "given", spread_coef="auto")
    with pytest.raises(ValueError, match="spread_coef is learned"):
        given.set_parameters(tmp_path / "learned")
    given.set_parameters(tmp_path / "given")
    learned.set_parameters({"policy": given.policy.state_dict()}, exact_match=False)
    assert_same(dict(learned.policy.state_dict()), dict(given.policy.state_dict()))


def test_first_value_may_be_any_number_as_sac_takes_it():
    assert make_model(spread_coef="auto_1e-3")._current_spread_coef().item() == pytest.approx(1e-3)


def test_without_a_coefficient_nothing_is_logged_of_it_and_nothing_changes():
    model, same = trained_model(spread_coef=0.0), trained_model(spread_coef=0.0, target_spread=0.5)
    assert not any("spread" in name for name in model.logger.name_to_value) and model.log_spread_coef is None
    assert_same(parameters(model), parameters(same))


def test_coefficient_and_its_optimiser_are_saved(tmp_path):
    model = trained_model(spread_coef="auto")
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.env)
    assert th.equal(loaded.log_spread_coef, model.log_spread_coef) and loaded.log_spread_coef.item() != 0
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(Logger(None, []))
    coefficients = []
    for each in (model, loaded):
        set_random_seed(11)
        each.train(6, batch_size=16)
        coefficients.append(each.log_spread_coef.clone())
    assert th.equal(*coefficients)
    assert_same(parameters(model), parameters(loaded))


def test_learning_rate_schedule_reaches_the_coefficient():
    model = make_model(spread_coef="auto", learning_rate=lambda progress: 1e-3 * progress).learn(100)
    assert model.spread_coef_optimizer.param_groups[0]["lr"] == model.actor.optimizer.param_groups[0]["lr"] < 1e-3


def test_a_loss_that_explodes_never_reaches_the_coefficient():
    model = trained_model(spread_coef="auto")
    before = model.log_spread_coef.clone()
    model.replay_buffer.rewards[:] = 1e30
    with pytest.raises(ValueError, match="diverged"):
        model.train(3, batch_size=8)
    assert th.equal(model.log_spread_coef, before)


@pytest.mark.parametrize("value", ["auto_0", "auto_x", "auto_-1", "car", -0.1, float("nan"), float("inf"), True, None])
def test_coefficients_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"spread_coef=.* must be a finite number of at least 0, \"auto\", or"):
        make_model(spread_coef=value)


@pytest.mark.parametrize("value", [0.0, 1.0, -1, "auto"])
def test_targets_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"target_spread=.* must be a number from 0.03 to 0.6"):
        make_model(target_spread=value)
