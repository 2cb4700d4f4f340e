"""What the two halves of the update share."""

from functools import partial

import pytest
import torch as th

from sb3_flowrl import update
from sb3_flowrl.compilation import MaybeCompiled
from tests.models import make_model, trained_model

th_autograd_grad = th.autograd.grad


def product_of_transposed(weight: th.Tensor, factors: th.Tensor) -> update.Gradients:
    loss = (weight.t().reshape(-1) * factors).sum()
    return update.gradients_of(loss, [weight], loss.detach())


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_laid_out_as_their_parameters(compiled, monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    weight, factors = th.randn(3, 4, requires_grad=True), th.arange(12.0)
    (plain,) = th.autograd.grad((weight.t().reshape(-1) * factors).sum(), [weight])
    assert plain.stride() != weight.stride()
    found = MaybeCompiled(product_of_transposed, cuda_graphs=False)(weight, factors, compiled=compiled)
    (gradient,) = found.gradients
    assert gradient.stride() == weight.stride() and th.equal(gradient, plain)


def test_optimisers_get_gradients_in_the_layout_that_fused_ones_demand_on_cuda(monkeypatch):
    """There kernels lay out gradients as they please, which this stands in for."""
    expected = trained_model(compile=False).policy.state_dict()

    def grad(loss, leaves):
        return tuple(each.mT.contiguous().mT if each.ndim > 1 else each for each in th_autograd_grad(loss, leaves))

    monkeypatch.setattr(th.autograd, "grad", grad)
    model = make_model(compile=False)
    n_gradients = 0

    def look(optimizer, args, kwargs):
        nonlocal n_gradients
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert parameter.grad.stride() == parameter.stride() and parameter.grad.is_contiguous()
                n_gradients += 1

    for network in ("actor", "critic", "behavior_critic", "behavior_value"):
        getattr(model, network).optimizer.register_step_pre_hook(look)
    model.learn(70)
    assert n_gradients > 100
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, expected[name]), name
