"""The study of another critic, whose hidden units keep weights of norm 1."""

from typing import Any

import pytest
import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.utils import set_random_seed

from sb3_flowrl.stacked import StackedLinear
from studies.critics import UnitNormFlowRL
from studies.study import find_study, load_study
from tests.models import SMALL, assert_compiles_alike, assert_same, parameters


def make(**kwargs) -> Any:
    return UnitNormFlowRL("MlpPolicy", "Pendulum-v1", **{**SMALL, "seed": 0, **kwargs})


def test_saved_models_are_what_they_were(tmp_path):
    model = make().learn(60)
    model.save(tmp_path / "model.zip")
    loaded = UnitNormFlowRL.load(tmp_path / "model.zip", env=model.env)
    assert_same(parameters(loaded), parameters(model))
    for each in (model, loaded):
        set_random_seed(5)
        each.replay_buffer = model.replay_buffer
        each._setup_learn(0)
        each.train(2, 32)
    assert_same(parameters(loaded), parameters(model))


def test_hidden_units_of_q_keep_weights_of_norm_one():
    model = make(policy_kwargs=dict(net_arch=[16, 16]))
    first = parameters(model)
    model.learn(80)
    *hidden, last = [layer for layer in model.critic.networks if isinstance(layer, StackedLinear)]
    assert len(hidden) == 2
    for layer in hidden:
        assert th.allclose(layer.weight.norm(dim=-1), th.ones(2, 16), atol=1e-6)
    assert not th.allclose(last.weight.norm(dim=-1), th.ones(2, 1), atol=1e-3)
    assert not th.equal(parameters(model)["critic.networks.1.weight"], first["critic.networks.1.weight"])


def test_it_needs_batch_normalization():
    with pytest.raises(ValueError, match="batch_norm=False must be True"):
        make(policy_kwargs=dict(net_arch=[16], batch_norm=False))


@pytest.mark.slow
def test_it_compiles_and_learns_the_same(monkeypatch, recwarn):
    assert_compiles_alike(make, monkeypatch)
    assert not [warning for warning in recwarn if "could not be compiled" in str(warning.message)]


def test_the_study_registers_it():
    study = load_study(find_study("critics"))
    assert {run.label: run.algo for run in study.runs()} == {"cheap-behavior": "flowrl", "unit-norm": "flowrl_unit_norm"}
    assert ALGOS["flowrl_unit_norm"] is UnitNormFlowRL
