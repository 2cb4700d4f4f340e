"""The flow: integration, probability path, squashing, noise."""

import itertools
import math

import pytest
import torch as th

from sb3_flowrl import flow


def solve(ode_solver: str, flow_steps: int) -> float:
    # dx/dt = x·cos(t), solved by x0·exp(sin t)
    x0 = th.tensor([[1.0, -0.5]], dtype=th.float64)
    solution = flow.integrate(lambda t, x: x * th.cos(t), x0, flow_steps, ode_solver)
    return (solution - x0 * math.exp(math.sin(1.0))).abs().max().item()


@pytest.mark.parametrize("ode_solver, order", [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_order_of_convergence(ode_solver, order):
    errors = [solve(ode_solver, flow_steps) for flow_steps in (16, 32, 64)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("ode_solver, times", [("euler", [0.0]), ("midpoint", [0.0, 0.25]), ("rk4", [0.0, 0.25, 0.25, 0.5])])
def test_where_the_velocity_field_is_evaluated(ode_solver, times):
    seen = []

    def velocity(t, x):
        assert t.shape == (3, 1) and x.shape == (3, 2)
        seen.append(t[0].item())
        return th.ones_like(x)

    x1 = flow.integrate(velocity, th.zeros(3, 2), 2, ode_solver)
    assert seen == times + [t + 0.5 for t in times]
    th.testing.assert_close(x1, th.ones(3, 2))  # a constant field is integrated exactly


@pytest.mark.parametrize("ode_solver", flow.ODE_SOLVERS)
def test_the_gradient_flows_through_every_step(ode_solver):
    flow_steps = 4
    rates = th.full((flow_steps,), 0.3, dtype=th.float64, requires_grad=True)

    def velocity(t, x):
        # a rate for each step; the end of a step is evaluated with the rate of the step itself
        return x * rates[min(int(t[0].item() * flow_steps), flow_steps - 1)]

    flow.integrate(velocity, th.ones(1, 1, dtype=th.float64), flow_steps, ode_solver).sum().backward()
    assert (rates.grad > 0).all()


def test_straight_path_leads_from_noise_to_action():
    x0, x1 = th.randn(4, 3), th.randn(4, 3)
    for t, expected in ((0.0, x0), (1.0, x1), (0.25, 0.75 * x0 + 0.25 * x1)):
        points, velocities = flow.straight_path(x0, x1, th.full((4, 1), t))
        th.testing.assert_close(points, expected)
        th.testing.assert_close(velocities, x1 - x0)


def test_a_perfect_field_carries_noise_to_the_matched_action():
    """The end of D5's argument: matched before squashing, the policy plays the stored action; matched to it, tanh of it."""
    actions = th.tensor([[0.9, -0.5, 0.0]])
    for matching, played in (("pre_squash", actions), ("action", th.tanh(actions))):
        noise = th.randn(1, 3)
        _, velocity = flow.straight_path(noise, flow.MATCHING_SPACES[matching](actions), th.zeros(1, 1))
        end_points = flow.integrate(lambda t, x, v=velocity: v, noise, 1, "midpoint")
        th.testing.assert_close(flow.squash(end_points), played)


def test_unsquash_is_finite_at_the_bounds_and_inverts_squash_within():
    inside = th.linspace(-0.99, 0.99, 21)
    th.testing.assert_close(flow.squash(flow.unsquash(inside)), inside)
    at_bounds = flow.unsquash(th.tensor([-1.0, 1.0, 1.0000001]))
    th.testing.assert_close(th.tanh(at_bounds), th.tensor([-0.999, 0.999, 0.999]))


def test_noise_is_standard_normal_and_truncated_only_on_request():
    th.manual_seed(0)
    noise = flow.draw_noise(20_000, 2, th.device("cpu"))
    for normal in (noise.path, noise.next_action, noise.action):
        assert normal.shape == (20_000, 2)
        assert normal.mean().abs() < 0.02 and abs(normal.std() - 1.0) < 0.02
    assert not th.equal(noise.path, noise.action) and not th.equal(noise.path, noise.next_action)
    assert noise.time.shape == (20_000, 1) and noise.time.min() >= 0 and noise.time.max() < 1
    assert abs(noise.time.mean() - 0.5) < 0.02

    assert flow.truncate_noise(noise.path, None) is noise.path
    clipped = flow.truncate_noise(noise.path, 0.5)
    inside = noise.path.abs() <= 0.5
    assert clipped.abs().max() == 0.5 and th.equal(clipped[inside], noise.path[inside])
