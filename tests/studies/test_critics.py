"""The study of other critics: a categorical one, and one whose hidden units keep weights of norm 1."""

from functools import partial
from typing import Any

import pytest
import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.utils import set_random_seed

from sb3_flowrl import FlowRL
from sb3_flowrl.stacked import StackedLinear
from studies.arguments import resolve
from studies.critics import CategoricalFlowRL, UnitNormFlowRL, XQCFlowRL
from studies.critics.categorical import N_ATOMS, cross_entropy, mean_value, pessimistic, project
from studies.study import find_study, load_study
from tests.models import SMALL, assert_compiles_alike, assert_same, parameters

ATOMS = th.linspace(-5.0, 5.0, N_ATOMS)


def make(algorithm: type[FlowRL], env="Pendulum-v1", **kwargs) -> Any:
    return algorithm("MlpPolicy", env, **{**SMALL, "scale_rewards": True, "seed": 0, **kwargs})


def drawn(*shape: int) -> th.Tensor:
    return th.randn(*shape, generator=th.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------------------------- equations


def test_mean_of_a_certain_return_is_its_atom():
    logits = th.full((2, N_ATOMS), -100.0)
    logits[0, 0] = logits[1, 75] = 100.0
    assert th.allclose(mean_value(logits, ATOMS), th.tensor([[-5.0], [2.5]]))
    assert th.allclose(mean_value(th.zeros(1, N_ATOMS), ATOMS), th.zeros(1, 1), atol=1e-6)


def test_projection_keeps_the_sum_and_the_mean():
    probabilities = drawn(8, N_ATOMS).softmax(dim=-1)
    returns = 0.3 + 0.9 * ATOMS.expand(8, -1)  # within the range
    projected = project(returns, probabilities, ATOMS)
    assert (projected >= 0).all() and th.allclose(projected.sum(dim=1), th.ones(8))
    assert th.allclose((projected * ATOMS).sum(dim=1), (probabilities * returns).sum(dim=1), atol=1e-5)


def test_projection_of_the_atoms_themselves_changes_nothing():
    probabilities = drawn(4, N_ATOMS).softmax(dim=-1)
    assert th.allclose(project(ATOMS.expand(4, -1), probabilities, ATOMS), probabilities, atol=1e-5)


@pytest.mark.parametrize("value, place", [(-7.0, 0), (7.0, -1), (5.0, -1)])
def test_returns_beyond_the_range_count_as_its_end(value, place):
    projected = project(th.full((1, N_ATOMS), value), th.full((1, N_ATOMS), 1 / N_ATOMS), ATOMS)
    assert projected[0, place] == pytest.approx(1.0)


def test_target_is_the_twin_with_the_smaller_mean_sample_by_sample():
    logits = drawn(2, 16, N_ATOMS)
    chosen, means = pessimistic(logits, ATOMS), mean_value(logits, ATOMS)
    assert th.allclose(mean_value(chosen, ATOMS), means.amin(dim=0))
    assert 0 < (means.argmin(dim=0) == 0).sum() < 16  # both were chosen at times


def test_cross_entropy_is_least_at_the_target_and_has_a_bounded_gradient():
    targets = drawn(8, N_ATOMS).softmax(dim=-1)
    exact, other = targets.log().expand(2, -1, -1), drawn(2, 8, N_ATOMS)
    assert cross_entropy(exact, targets) < cross_entropy(other, targets)
    logits = (1_000 * other).requires_grad_()
    (gradient,) = th.autograd.grad(8 * cross_entropy(logits, targets), logits)  # of the sum over samples
    assert gradient.norm(dim=-1).max() <= 2**0.5


# --------------------------------------------------------------------------------------------------------------- algorithms


@pytest.mark.parametrize("algorithm", [CategoricalFlowRL, UnitNormFlowRL, XQCFlowRL])
def test_saved_models_are_what_they_were(algorithm, tmp_path):
    model = make(algorithm).learn(60)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=model.env)
    assert_same(parameters(loaded), parameters(model))
    for each in (model, loaded):
        set_random_seed(5)
        each.replay_buffer = model.replay_buffer
        each._setup_learn(0)
        each.train(2, 32)
    assert_same(parameters(loaded), parameters(model))


@pytest.mark.parametrize("algorithm", [CategoricalFlowRL, XQCFlowRL])
def test_values_of_the_categorical_critic_are_within_the_atoms_and_learn_the_return(algorithm):
    model = make(algorithm, learning_rate=1e-2).learn(300)
    q = model.critic.q(th.as_tensor(model.replay_buffer.observations[:200, 0]), th.zeros(200, 1))
    assert q.shape == (2, 200, 1) and q.abs().max() <= 5.0
    assert q.mean() < -1.0  # Pendulum's rewards are negative
    assert model.behavior_critic.q(th.zeros(1, 3), th.zeros(1, 1)).shape == (2, 1, 1)


@pytest.mark.parametrize("algorithm, n_outputs", [(UnitNormFlowRL, 1), (XQCFlowRL, N_ATOMS)])
def test_hidden_units_of_q_keep_weights_of_norm_one(algorithm, n_outputs):
    model = make(algorithm, policy_kwargs=dict(net_arch=[16, 16]))
    first = parameters(model)
    model.learn(80)
    *hidden, last = [layer for layer in model.critic.networks if isinstance(layer, StackedLinear)]
    assert len(hidden) == 2
    for layer in hidden:
        assert th.allclose(layer.weight.norm(dim=-1), th.ones(2, 16), atol=1e-6)
    assert not th.allclose(last.weight.norm(dim=-1), th.ones(2, n_outputs), atol=1e-3)
    assert not th.equal(parameters(model)["critic.networks.1.weight"], first["critic.networks.1.weight"])


@pytest.mark.parametrize(
    "algorithm, kwargs, message",
    [
        (CategoricalFlowRL, dict(scale_rewards=False), "scale_rewards=False must be True"),
        (CategoricalFlowRL, dict(policy_kwargs=dict(net_arch=[16], batch_norm=False)), "batch_norm=False must be True"),
        (UnitNormFlowRL, dict(policy_kwargs=dict(net_arch=[16], batch_norm=False)), "batch_norm=False must be True"),
    ],
)
def test_what_a_critic_needs_is_said(algorithm, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(algorithm, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [CategoricalFlowRL, UnitNormFlowRL, XQCFlowRL])
def test_it_compiles_and_learns_the_same(algorithm, monkeypatch, recwarn):
    assert_compiles_alike(partial(make, algorithm), monkeypatch)
    assert not [warning for warning in recwarn if "could not be compiled" in str(warning.message)]


# -------------------------------------------------------------------------------------------------------------------- study


def test_study_has_four_critics_three_of_them_with_scaled_rewards():
    study = load_study(find_study("critics"))
    first = {run.label: run for run in study.runs() if run.env == study.environments[0]}
    assert {label: run.algo for label, run in first.items() if label != "cheap-behavior"} == {
        "scaled": "flowrl",
        "categorical": "flowrl_categorical",
        "xqc": "flowrl_xqc",
        "unit-norm": "flowrl_unit_norm",
    }
    registered = [ALGOS[f"flowrl_{name}"] for name in ("categorical", "unit_norm", "xqc")]
    assert registered == [CategoricalFlowRL, UnitNormFlowRL, XQCFlowRL]
    scaled, categorical, xqc = (resolve(first[label])["hyperparameters"] for label in ("scaled", "categorical", "xqc"))
    assert scaled == categorical == {**xqc, "learning_rate": scaled["learning_rate"]} and scaled["scale_rewards"]
