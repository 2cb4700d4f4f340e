"""What the two halves of the update share: gradients, and the steps that optimizers take with them."""

import copy
from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from sb3_flowrl import FlowRL, update
from sb3_flowrl.execution import MaybeCompiled
from tests.marks import slow_except
from tests.models import ScaleExtractor, assert_same, make_model, moments, parameters, trained_model

th_autograd_grad = th.autograd.grad
SHARED = dict(
    net_arch=[16],
    share_features_extractor=True,
    features_extractor_class=ScaleExtractor,
    features_extractor_kwargs=dict(scale=1.0),
)


def product_of_transposed(weight: th.Tensor, factors: th.Tensor) -> update.Gradients:
    loss = (weight.t().reshape(-1) * factors).sum()
    return update.differentiate(loss, {"loss": loss}, [weight])


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_laid_out_as_their_parameters(compiled, monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    weight, factors = th.randn(3, 4, requires_grad=True), th.arange(12.0)
    (plain,) = th.autograd.grad((weight.t().reshape(-1) * factors).sum(), [weight])
    assert plain.stride() != weight.stride()
    found = MaybeCompiled(product_of_transposed, th.device("cpu"))(weight, factors, compiled=compiled)
    (gradient,) = found.gradients
    assert gradient.stride() == weight.stride() and th.equal(gradient, plain)


def test_optimizers_get_gradients_in_the_layout_that_fused_ones_demand_on_cuda(monkeypatch):
    """There kernels lay out gradients as they please, which this stands in for."""
    expected = trained_model(compile=False).policy.state_dict()

    def grad(loss, parameters, **kwargs):
        gradients = th_autograd_grad(loss, parameters, **kwargs)
        return tuple(each.mT.contiguous().mT if each.ndim > 1 else each for each in gradients)

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


# ------------------------------------------------------------------------------------------------- parts that don't learn


#: Parts that can be frozen, and the prefix of parameters that must go on learning then.
FROZEN = {
    "a layer of the actor": (lambda model: model.actor.velocity_net[0], "actor.velocity_net.3"),
    "the actor": (lambda model: model.actor, "critic.networks"),
    "the critic": (lambda model: model.critic, "actor.velocity_net"),
    "the behavior's critic": (lambda model: model.behavior_critic, "critic.networks"),
    "the behavior's value": (lambda model: model.behavior_value, "critic.networks"),
    "the actor's extractor": (lambda model: model.actor.features_extractor, "actor.velocity_net"),
    "all value functions": (
        lambda model: nn.ModuleList([model.critic, model.behavior_critic, model.behavior_value]),
        "actor.velocity_net",
    ),
}


@pytest.mark.parametrize(
    "part, compile",
    [*((part, False) for part in FROZEN), pytest.param("a layer of the actor", True, marks=pytest.mark.slow)],
)
def test_a_part_that_is_frozen_in_mid_training_stands_still_and_the_others_go_on(part, compile, monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    model = make_model(policy_kwargs=SHARED, compile=compile).learn(60)
    find, others = FROZEN[part]
    frozen = find(model).requires_grad_(False)
    before, all_before = copy.deepcopy(list(frozen.parameters())), parameters(model)
    model.learn(10, reset_num_timesteps=False)
    assert before and all(th.equal(now, then) for now, then in zip(frozen.parameters(), before, strict=True))
    learned = {name: value for name, value in parameters(model).items() if name.startswith(others) and "running" not in name}
    assert learned and all(not th.equal(value, all_before[name]) for name, value in learned.items())


def test_a_frozen_part_learns_on_when_it_is_thawed():
    model = trained_model()
    layer = model.actor.velocity_net[0]
    layer.requires_grad_(False)
    model.learn(10, reset_num_timesteps=False)
    before = layer.requires_grad_(True).weight.clone()
    model.learn(10, reset_num_timesteps=False)
    assert not th.equal(layer.weight, before)


@pytest.mark.parametrize(
    "is_in_the_optimizer, compile", [(False, False), (True, False), pytest.param(True, True, marks=pytest.mark.slow)]
)
def test_a_parameter_without_a_part_in_the_loss_is_left_alone(is_in_the_optimizer, compile, monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    model = make_model(compile=compile)
    model.actor.head = nn.Linear(4, 4)
    if is_in_the_optimizer:
        model.actor.optimizer.add_param_group(dict(params=list(model.actor.head.parameters())))
    before = copy.deepcopy(list(model.actor.head.parameters()))
    model.learn(60)
    assert model._n_updates == 10
    for now, then in zip(model.actor.head.parameters(), before, strict=True):
        assert th.equal(now, then)


# -------------------------------------------------------------------------------------------------- what is not finite


class Root(nn.Module):
    """Finite, with a gradient of 0 · inf = NaN at 0."""

    def forward(self, x):
        return (x * (x > 0)).sqrt()


@pytest.mark.parametrize("optimizer", [dict(), dict(optimizer_class=th.optim.SGD)], ids=["Adam", "SGD"])
@pytest.mark.parametrize("part", ["pi", "qf"])
def test_a_gradient_that_is_not_finite_reaches_no_network(part, optimizer):
    activation_fn = {"pi": nn.ReLU, "qf": nn.ReLU, part: Root}
    model = make_model(
        learning_starts=300,
        train_freq=200,
        gradient_steps=3,
        policy_kwargs=dict(net_arch=[16], activation_fn=activation_fn, **optimizer),
    )
    before = parameters(model.learn(200))
    with pytest.raises(ValueError, match=r"A gradient of updates 1 to 3 \(environment step 400\) is not finite, although all"):
        model.learn(200, reset_num_timesteps=False)
    assert all(value.isfinite().all() for value in parameters(model).values())
    assert all(value.isfinite().all() for value in moments(model).values())
    if part == "pi":  # which comes after the values
        actor = {name: value for name, value in before.items() if name.startswith(("actor.", "behavior_critic_target."))}
        assert_same({name: parameters(model)[name] for name in actor}, actor)


def test_an_action_that_is_not_finite_is_neither_returned_nor_played():
    model = trained_model()
    obs = model.env.reset()
    with pytest.raises(ValueError, match=r"The action holds 1 value.*nan.*parameters of the policy are finite.*observations"):
        model.predict(np.full_like(obs, np.nan))
    model.actor.velocity_net[0].bias.data[:] = np.nan
    for predict in (model.predict, model.policy.predict, model.actor.predict):
        with pytest.raises(ValueError, match=r"1 parameter\(s\) of the policy are not finite; the first is .*velocity_net"):
            predict(obs)
    n_transitions = model.replay_buffer.size()
    with pytest.raises(ValueError, match="The action holds"):
        model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer.size() == n_transitions


# ---------------------------------------------------------------------------------------------------------- the samples


class WithDemonstrations(ReplayBuffer):
    """Adds three demonstrations to each batch, and draws the rest without replacement."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def sample(self, batch_size, env=None):
        self.asked.append(batch_size)
        rows = np.random.permutation(self.size())[:batch_size]
        return self._get_samples(np.concatenate([rows, np.zeros(3, dtype=int)]), env)


def test_a_buffer_of_the_users_is_asked_for_one_batch_at_a_time_and_may_return_another_number():
    model = make_model(replay_buffer_class=WithDemonstrations, gradient_steps=3, batch_size=64).learn(70)
    assert model._n_updates == 60 and set(model.replay_buffer.asked) == {64} and len(model.replay_buffer.asked) == 60


@pytest.mark.parametrize("compile", slow_except([False], [False, True]))
def test_another_default_dtype_after_the_model_was_made_changes_nothing(compile, monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    th.compiler.reset()

    def trained(dtype: th.dtype) -> FlowRL:
        model = make_model(spread_coef=0.1, compile=compile, policy_kwargs=dict(net_arch=[16], batch_norm=False))
        th.set_default_dtype(dtype)
        try:
            model.learn(60)
            model.predict(model.observation_space.sample(), deterministic=True)
        finally:
            th.set_default_dtype(th.float32)
        return model

    assert_same(parameters(trained(th.float64)), parameters(trained(th.float32)))
