"""The study of a velocity field that starts as a Gaussian's."""

from typing import Any

import pytest
import torch as th
from rl_zoo3.utils import ALGOS

from sb3_flowrl import FlowRL
from sb3_flowrl.flow import unsquash
from studies.field import AffineFieldFlowRL
from studies.study import find_study, load_study
from tests.models import SMALL, assert_compiles_alike, assert_same


def make(**kwargs) -> Any:
    return AffineFieldFlowRL("MlpPolicy", "Pendulum-v1", **{**SMALL, "ode_solver": "euler", "seed": 0, **kwargs})


def end_points(actor, noise: th.Tensor) -> th.Tensor:
    """Of the flow in one state, ``(n, A)``."""
    features = th.tensor([[0.3, -0.2, 0.1]]).expand(len(noise), -1)
    return unsquash(actor.flow(features, noise))


def test_the_flow_starts_as_a_gaussian_and_learns_to_be_more():
    model = make()
    noise = th.linspace(-0.9, 0.9, 18)[:, None]
    mean, ends = end_points(model.actor, th.zeros(1, 1)), end_points(model.actor, noise)
    slope = (ends - mean) / noise
    assert th.allclose(slope, slope[0].expand_as(slope), rtol=1e-3) and slope[0] > 0 and slope[0] != 1
    model.learn(100)
    bent = end_points(model.actor, noise)
    assert (bent[2:] - 2 * bent[1:-1] + bent[:-2]).abs().max() > 1e-4


def test_the_critics_start_as_flowrls():
    arguments = dict(SMALL, ode_solver="euler", seed=0)
    theirs = FlowRL("MlpPolicy", "Pendulum-v1", **arguments)  # type: ignore[arg-type]
    assert_same(dict(make().critic.state_dict()), dict(theirs.critic.state_dict()))


@pytest.mark.slow
def test_it_compiles_and_learns_the_same(monkeypatch, recwarn):
    assert_compiles_alike(make, monkeypatch)
    assert not [warning for warning in recwarn if "could not be compiled" in str(warning.message)]


def test_the_study_registers_it():
    study = load_study(find_study("field"))
    assert {run.label: run.algo for run in study.runs()}["affine-field"] == "flowrl_affine_field"
    assert ALGOS["flowrl_affine_field"] is AffineFieldFlowRL
