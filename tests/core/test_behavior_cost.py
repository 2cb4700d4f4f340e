"""Q_β* and V_β* at a part of their cost: updated with the actor alone, or smaller than Q_π."""

from functools import partial

import pytest
import torch as th

from sb3_flowrl import FlowRL
from tests.marks import slow_except
from tests.models import assert_same, make_model, parameters, trained_model

BEHAVIOR = ("behavior_critic.", "behavior_value.")


def of_behavior(model: FlowRL) -> dict[str, th.Tensor]:
    return {name: value for name, value in parameters(model).items() if name.startswith(BEHAVIOR)}


def test_they_move_only_with_the_actor():
    model = make_model(delay_behavior=True, policy_delay=3).learn(50)
    for _ in range(7):
        steps_actor = model._n_updates % 3 == 0
        before, critic = of_behavior(model), model.critic.networks[1].weight.clone()
        model.logger.name_to_value.clear()
        model.train(1, 32)
        moved = [name for name, value in of_behavior(model).items() if not th.equal(value, before[name])]
        assert bool(moved) == steps_actor == ("train/value_loss" in model.logger.name_to_value)
        assert not th.equal(model.critic.networks[1].weight, critic) and "train/critic_loss" in model.logger.name_to_value


def test_an_actor_that_is_never_delayed_delays_nothing():
    assert_same(*(parameters(trained_model(policy_delay=1, delay_behavior=delays)) for delays in (False, True)))


@pytest.mark.parametrize("batch_norm", slow_except([], [False, True]))
def test_delayed_updates_are_the_same_compiled(batch_norm, monkeypatch):
    monkeypatch.setattr(th, "compile", partial(th.compile, backend="aot_eager"))
    policy_kwargs = dict(net_arch=[16], batch_norm=batch_norm)
    eager, compiled = (
        parameters(trained_model(delay_behavior=True, policy_kwargs=policy_kwargs, compile=how)) for how in (False, True)
    )
    for name, value in eager.items():
        th.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_they_may_be_smaller(batch_norm, tmp_path):
    net_arch = dict(pi=[16], qf=[24, 12], behavior=[8])
    model = trained_model(policy_kwargs=dict(net_arch=net_arch, batch_norm=batch_norm))
    policy = model.policy
    for network, widths in (
        (policy.critic, [24, 12]),
        (policy.critic_target, [24, 12]),
        (policy.behavior_critic, [8]),
        (policy.behavior_critic_target, [8]),
        (policy.behavior_value, [8]),
    ):
        if network is not None:
            layers = [layer.weight for layer in network.networks if hasattr(layer, "weight") and layer.weight.dim() == 3]
            assert [layer.shape[1] for layer in layers] == [*widths, 1]
    model.save(tmp_path / "model")
    assert_same(parameters(FlowRL.load(tmp_path / "model")), parameters(model))


def test_critics_of_one_size_start_alike():
    same, smaller = (
        make_model(policy_kwargs=dict(net_arch=dict(pi=[16], qf=[16], behavior=[width]), batch_norm=False))
        for width in (16, 8)
    )
    assert_same(*(network.state_dict() for network in (same.critic, same.behavior_critic)))
    assert smaller.behavior_critic.networks[0].weight.shape != smaller.critic.networks[0].weight.shape


def test_widths_of_another_name_are_as_before():
    critic = make_model(policy_kwargs=dict(net_arch=dict(pi=[16], qf=[8]))).behavior_critic
    assert critic.networks[0].weight.shape[1] == 8
