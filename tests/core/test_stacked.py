"""Stacked networks against separate ones, and the optimisers' fused steps against plain ones."""

from copy import deepcopy

import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from sb3_flowrl.networks import create_normed_mlp
from sb3_flowrl.stacked import StackedMLP
from tests.models import make_model, parameters

N_UPDATES = 100


def make_networks(activation: type[nn.Module] = nn.GELU, n_networks: int = 2) -> list[nn.Sequential]:
    th.manual_seed(0)
    return [create_normed_mlp(3, 1, [16, 8], activation) for _ in range(n_networks)]


@pytest.mark.parametrize("evaluate", [StackedMLP._one_by_one, StackedMLP._batched])  # on a CPU, and elsewhere
@pytest.mark.parametrize("activation", [nn.GELU, nn.PReLU])
def test_a_stack_trains_as_its_networks_would(activation, evaluate):
    networks = make_networks(activation)
    stack = StackedMLP(networks)
    optimizers = [th.optim.Adam(each.parameters(), lr=1e-3) for each in (nn.ModuleList(networks), stack)]
    for _ in range(N_UPDATES):
        x, y = th.randn(32, 3), th.randn(32, 1)
        values = [th.stack([network(x) for network in networks]), evaluate(stack, x)]
        th.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
        for optimizer, value in zip(optimizers, values, strict=True):
            optimizer.zero_grad()
            (value - y).square().mean().backward()
            optimizer.step()


def test_a_stack_has_copies_of_its_networks_parameters():
    networks = make_networks(nn.PReLU, n_networks=3)
    stack = StackedMLP(networks)
    x = th.randn(5, 3)
    before = stack(x)
    assert before.shape == (3, 5, 1)
    for parameter in nn.ModuleList(networks).parameters():
        nn.init.zeros_(parameter)
    assert th.equal(stack(x), before)


def test_half_precision_comes_out_as_float32_and_is_near():
    stack = StackedMLP(make_networks())
    x = th.randn(64, 3)
    with th.autocast("cpu", dtype=th.bfloat16):
        value, one_by_one, batched = stack(x), stack._one_by_one(x), stack._batched(x)
    assert value.dtype == th.float32 and one_by_one.dtype == batched.dtype == th.bfloat16
    for each in (value, one_by_one.float(), batched.float()):
        assert not th.equal(each, stack(x))
        th.testing.assert_close(each, stack(x), rtol=0.05, atol=0.05)


def test_fused_and_plain_adam_take_the_same_steps():
    models = []
    for fused in (True, False):
        model = make_model(policy_kwargs=dict(net_arch=[16], optimizer_kwargs=dict(fused=fused))).learn(51)
        set_random_seed(1)
        model.train(N_UPDATES, 32)
        models.append(model)
    ours, theirs = map(parameters, models)
    for name, value in ours.items():
        th.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
    assert models[0]._n_updates == N_UPDATES + 1
    assert deepcopy(models[0].policy).critic.networks.n_networks == 2
