"""
Gradient steps in CUDA graphs, as far as a CPU can check them: a stand-in for a graph runs the captured function again, which
sees new values only in the buffers that the graph would read. ``test_cuda.py`` checks the graphs themselves.
"""

import copy
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.utils import set_random_seed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_flowrl import FlowRL, execution, flowrl
from sb3_flowrl.diagnostics.dry_run import copy_of
from sb3_flowrl.execution import CapturedStep, tensors_of
from tests.models import SMALL, assert_same, batches_of, make_model, moments, parameters


class Captures:
    """Stands in for ``execution.capture``: counts what is captured and what is replayed."""

    def __init__(self):
        self.n_captured = self.n_replayed = 0

    def __call__(self, function: Callable[[], th.Tensor]) -> Callable[[], th.Tensor]:
        self.n_captured += 1
        result: list[th.Tensor] = []

        def replay() -> th.Tensor:
            self.n_replayed += 1
            new = function()
            result[:] = result or [th.empty_like(new)]
            return result[0].copy_(new)  # where the last one was

        return replay


@contextmanager
def no_watch(waits=()):
    yield list(waits)


@pytest.fixture
def captures(monkeypatch) -> Captures:
    """Models made in this test take their steps through the stand-in."""
    captures = Captures()
    monkeypatch.setattr(flowrl, "CapturedStep", partial(CapturedStep, capture=captures, watch=no_watch))
    monkeypatch.setattr(flowrl, "set_learning_rate", lambda optimizers, rate, device: use_rate(optimizers, rate))
    monkeypatch.setattr(execution, "_compile", lambda function, device: function)
    return captures


def use_rate(optimizers, rate: float) -> None:
    """On a CPU fused optimizers take no tensor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def captured(model: FlowRL) -> FlowRL:
    """The model, as if its device had graphs."""
    model._cuda_graphs = True
    return model


def captured_model(**options) -> FlowRL:
    return captured(make_model(compile=True, **options))


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(spread_coef=0.0, policy_delay=3, gradient_steps=6),
        dict(learning_rate=lambda progress: 1e-3 * progress, policy_kwargs=dict(net_arch=[16], batch_norm=False)),
        dict(n_steps=3, policy_delay=1),
        dict(delay_behavior=True),
    ],
)
def test_replayed_steps_are_the_eager_ones(options, captures):
    ours, theirs = captured_model(**options).learn(90), make_model(compile=False, **options).learn(90)
    assert captures.n_captured == (1 if options.get("policy_delay") == 1 else 2) and captures.n_replayed > 20
    assert_same(parameters(ours), parameters(theirs))
    assert_same(moments(ours), moments(theirs))
    for name, value in theirs.logger.name_to_value.items():
        if name.startswith("train/"):
            assert ours.logger.name_to_value[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "w2_coef", 0.5),
        lambda model: setattr(model, "tau", 0.5),
        lambda model: setattr(model, "actor_tau", 0.5),
        lambda model: setattr(model, "target_spread", 0.3),
        lambda model: setattr(model, "guidance", "reference"),
        lambda model: model.actor.velocity_net[0].requires_grad_(False),
        lambda model: model.set_parameters(copy.deepcopy(model.get_parameters())),
        lambda model: model.critic.optimizer.load_state_dict(copy.deepcopy(model.critic.optimizer.state_dict())),
        lambda model: setattr(model, "batch_size", 16),
        lambda model: model.critic.optimizer.param_groups[0].update(weight_decay=0.1),
    ],
    ids=[
        "w2_coef",
        "tau",
        "actor_tau",
        "target_spread",
        "guidance",
        "frozen",
        "set_parameters",
        "optimizer",
        "batch_size",
        "weight_decay",
    ],
)
def test_what_the_step_reads_on_the_host_leads_to_another_graph(change, captures):
    ours, theirs = captured_model().learn(70), make_model(compile=False).learn(70)
    assert captures.n_captured == 2
    for model in (ours, theirs):
        change(model)
        set_random_seed(3)
        model.learn(20, reset_num_timesteps=False)
    assert captures.n_captured == 4
    assert_same(parameters(ours), parameters(theirs))


def test_a_learning_rate_that_is_read_on_the_host_is_not_captured(captures):
    options = dict(
        learning_rate=lambda progress: 1e-3 * progress, policy_kwargs=dict(net_arch=[16], optimizer_class=th.optim.SGD)
    )
    with pytest.warns(UserWarning, match="an optimizer is not fused") as warned:
        ours = captured_model(**options).learn(90)
    assert captures.n_captured == 0 and len([each for each in warned if "CUDA graph" in str(each.message)]) == 1
    assert_same(parameters(ours), parameters(make_model(compile=False, **options).learn(90)))


def test_each_guidance_has_graphs_of_its_own():
    """Also where a new function has the address of one that is gone."""
    model, keys = make_model(), set()
    model._captured_step = lambda *arguments: keys.add(arguments[-1])
    for number in range(12):
        model.guidance = partial(scaled_guidance, number)
        model._step_in_a_graph(batch=None, steps_actor=True, diverged=None)
    assert len(keys) == 12
    model._step_in_a_graph(batch=None, steps_actor=True, diverged=None)
    assert len(keys) == 12


def scaled_guidance(scale: float, q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    return scale * w2_coef * th.ones_like(q_policy)


def test_the_number_of_graphs_is_bounded(captures, monkeypatch):
    monkeypatch.setattr(execution, "MAX_GRAPHS", 3)
    model = captured_model(policy_delay=1).learn(60)
    for tau in (0.1, 0.2, 0.3, 0.4):
        model.tau = tau
        model.learn(5, reset_num_timesteps=False)
    assert captures.n_captured == 5 and len(model._captured_step._graphs) == 3


def test_divergence_is_noted_in_a_graph(captures):
    model = captured_model().learn(70)
    before = parameters(model)
    model.replay_buffer.rewards[:] = 1e30
    with pytest.raises(ValueError, match="Training has diverged"):
        model.train(3, batch_size=32)
    assert captures.n_replayed > 10
    assert_same(
        {name: value for name, value in parameters(model).items() if "running" not in name},
        {name: value for name, value in before.items() if "running" not in name},
    )
    model.replay_buffer.rewards[:] = 1.0
    model.train(3, batch_size=32)


def test_a_step_in_which_the_host_waits_is_not_captured(captures, monkeypatch):
    monkeypatch.setattr(
        flowrl, "CapturedStep", partial(CapturedStep, capture=captures, watch=lambda: no_watch(["extractor.py:7"] * 2))
    )
    with pytest.warns(UserWarning, match=r"can't be captured in a CUDA graph.*waits for the device at extractor.py:7\. Usual"):
        model = captured_model().learn(80)
    theirs = make_model(compile=False).learn(80)
    assert captures.n_captured == 0
    assert_same(parameters(model), parameters(theirs))


def test_a_capture_that_fails_is_one_warning(captures, monkeypatch):
    def fail(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(flowrl, "CapturedStep", partial(CapturedStep, capture=fail, watch=no_watch))
    with pytest.warns(UserWarning, match="can't be captured.*not permitted when stream is capturing") as caught:
        model = captured_model().learn(80)
    assert len([each for each in caught if "captured" in str(each.message)]) == 1
    assert_same(parameters(model), parameters(make_model(compile=False).learn(80)))


def test_dict_observations_are_copied_into_the_buffers(captures):
    def made(**options: Any) -> FlowRL:
        set_random_seed(0)  # the environment draws its images when it is made
        env = SimpleMultiObsEnv(discrete_actions=False, num_col=2, num_row=2)
        arguments: dict[str, Any] = {**SMALL, "batch_size": 4, **options}
        return FlowRL("MultiInputPolicy", env, seed=0, **arguments)

    ours = parameters(captured(made(compile=True)).learn(62))
    assert_same(ours, parameters(made(compile=False).learn(62)))
    assert captures.n_captured == 2


class Watched(TorchDispatchMode):
    """Notes operations that a graph can't replay: those that look at values, and those whose shapes depend on them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item")):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [dict(), dict(policy_kwargs=dict(net_arch=[16], batch_norm=False), precision="bfloat16")])
def test_a_step_looks_at_no_value_and_depends_on_its_buffers_alone(options):
    """The same buffers with swapped contents give what each content gives by itself."""
    model = make_model(compile=False, **options).learn(60)
    batches, diverged = batches_of(model, 2, 16), th.zeros(())
    results = {}
    for name, order in dict(first=[0], second=[1], swapped=[0, 1]).items():
        taken = copy_of(model)
        static = execution.empty_like(batches[0])
        for index in order:
            if name == "swapped" and index == 1:
                taken = copy_of(model)  # the buffers stay, the networks start again
            for ours, theirs in zip(tensors_of(static), tensors_of(batches[index]), strict=True):
                ours.copy_(theirs)
            set_random_seed(index)
            with Watched() as watched:
                terms = taken._gradient_step(static, True, diverged)
            assert watched.found == []
        results[name] = parameters(taken), {key: value.item() for key, value in terms.items()}
    assert results["swapped"][1] == results["second"][1] != results["first"][1]
    assert_same(results["swapped"][0], results["second"][0])


def test_learning_rates_in_tensors_keep_their_place_and_are_saved_as_numbers():
    weight = nn.Parameter(th.ones(2))
    fused, plain = th.optim.Adam([weight], lr=0.1, fused=True), th.optim.SGD([weight], lr=0.1)
    execution.set_learning_rate([fused, plain], 0.25, th.device("cpu"))
    (group,) = fused.param_groups
    place = group["lr"].data_ptr()
    assert group["lr"].item() == 0.25 and group["capturable"] and plain.param_groups[0]["lr"] == 0.25
    execution.set_learning_rate([fused], 0.5, th.device("cpu"))
    assert group["lr"].item() == 0.5 and group["lr"].data_ptr() == place
    saved = execution.as_saved(fused.state_dict())["param_groups"][0]
    assert saved["lr"] == 0.5 and saved["capturable"] is False and isinstance(group["lr"], th.Tensor)
    state_dict = dict(weight=weight)
    assert execution.as_saved(state_dict) is state_dict


def test_graphs_stay_behind_when_copied_or_pickled(captures, tmp_path):
    step = CapturedStep(np.add, capture=np.abs, watch=np.sum)
    step._graphs["key"] = step._n_calls["key"] = 1
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert not other._graphs and not other._n_calls and other.step is np.add and step._graphs
    model = captured_model().learn(70)
    model.save(tmp_path / "model")
    assert_same(parameters(FlowRL.load(tmp_path / "model")), parameters(model))


@pytest.fixture
def playing(captures, monkeypatch) -> Captures:
    """Actors made in this test predict through the stand-in."""
    monkeypatch.setattr(execution, "GRAPH_DEVICE", "cpu")
    monkeypatch.setattr(execution, "CapturedCalls", partial(execution.CapturedCalls, capture=captures, watch=no_watch))
    return captures


@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_replays_one_graph_for_each_number_of_observations(deterministic, playing, monkeypatch):
    model, rng = make_model(), np.random.default_rng(0)
    observations = [rng.normal(size=(n, 3)).astype(np.float32) for n in (1, 1, 1, 1, 8, 8, 8, 8, 8, 1)]

    def actions() -> list[np.ndarray]:
        set_random_seed(0)
        return [model.predict(obs, deterministic=deterministic)[0] for obs in observations]

    replayed = actions()
    assert playing.n_captured == 2 and playing.n_replayed == 4
    monkeypatch.setattr(execution, "GRAPH_DEVICE", "none")
    for ours, theirs in zip(replayed, actions(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_predict_follows_a_changed_integration(playing):
    model, obs = make_model(), np.ones((2, 3), dtype=np.float32)
    for n_captured, flow_steps in ((1, 1), (2, 3)):
        model.policy.trained_actor.flow_steps = flow_steps
        for _ in range(5):
            model.predict(obs, deterministic=True)
        assert playing.n_captured == n_captured


@pytest.mark.parametrize("device, expected", [("cuda", True), ("cuda:0", True), ("cuda:1", False), ("cpu", True)])
def test_only_the_current_device_can_be_captured(device, expected, monkeypatch):
    monkeypatch.setattr(th.cuda, "current_device", lambda: 0)
    assert execution.is_current(th.device(device)) == expected


def test_predict_follows_parameters_that_change_or_move(playing):
    model, obs = make_model(), np.ones((2, 3), dtype=np.float32)
    first = [model.predict(obs, deterministic=True)[0] for _ in range(5)][-1]
    with th.no_grad():
        for parameter in model.policy.trained_actor.parameters():
            parameter.add_(0.1)
    changed, _ = model.predict(obs, deterministic=True)
    assert playing.n_captured == 1 and not np.array_equal(first, changed)
    for parameter in model.policy.trained_actor.parameters():
        parameter.data = parameter.data.clone()
    moved = [model.predict(obs, deterministic=True)[0] for _ in range(5)]
    assert playing.n_captured == 2
    for action in moved:
        np.testing.assert_array_equal(action, changed)


def test_predict_with_an_extractor_that_cannot_be_captured_is_one_warning(playing, monkeypatch):
    waiting = partial(execution.CapturedCalls.func, capture=playing, watch=lambda: no_watch(["extractor.py:7"]))
    monkeypatch.setattr(execution, "CapturedCalls", waiting)
    model, obs = make_model(), np.ones((2, 3), dtype=np.float32)
    with pytest.warns(
        UserWarning, match=r"^predict can't be captured.*waits for the device at extractor.py:7\. Usual"
    ) as caught:
        for _ in range(8):
            model.predict(obs, deterministic=True)
    assert playing.n_captured == 0 and len(caught) == 1
