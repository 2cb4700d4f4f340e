"""The study of single changes, one of which is a guidance by Q_π alone."""

from typing import Any

import pytest
import torch as th
from rl_zoo3.utils import ALGOS

from sb3_flowrl import losses
from studies.screens import SelfGuidedFlowRL
from studies.screens.self_guided import actor_gradients
from studies.study import find_study, load_study
from tests.models import SMALL, assert_compiles_alike, batch_of, noise_of


def make(**kwargs) -> Any:
    return SelfGuidedFlowRL("MlpPolicy", "Pendulum-v1", **{**SMALL, "seed": 0, **kwargs})


def test_actions_are_compared_by_q_of_the_policy():
    model = make(spread_coef=0.0).learn(60)
    batch, noise = batch_of(model, 32), noise_of(model, 32)
    policy, parameters = model.policy, list(model.actor.parameters())
    policy.set_training_mode(False)
    terms = actor_gradients(policy, model.settings, batch, noise, th.full((32, 1), 1e6), None, parameters).terms
    q_of_buffer = losses.clipped_min(policy.critic.q(batch.observations, batch.actions))
    q_of_policy = losses.clipped_min(policy.critic.q(batch.observations, model.actor.act(batch.observations, noise.action)))
    assert th.allclose(terms["q_behavior"], q_of_buffer.mean()) and th.allclose(terms["q_policy"], q_of_policy.mean())
    assert th.allclose(terms["guidance_active"], (q_of_buffer > q_of_policy).float().mean())


@pytest.mark.slow
def test_it_compiles_and_learns_the_same(monkeypatch, recwarn):
    assert_compiles_alike(make, monkeypatch)
    assert not [warning for warning in recwarn if "could not be compiled" in str(warning.message)]


def test_the_study_registers_it():
    study = load_study(find_study("screens"))
    assert {run.label: run.algo for run in study.runs()}["self-guided"] == "flowrl_self_guided"
    assert ALGOS["flowrl_self_guided"] is SelfGuidedFlowRL
