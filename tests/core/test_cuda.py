"""
On CUDA the updates are those of the CPU: the authors' numbers, in CUDA graphs too, without a wait for the device in between.
"""

import copy
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.diagnostics.callback import DiagnosticsCallback
from tests.core.test_execution import check_compiled_parity, copy_of, train_alike
from tests.core.test_parity import check_parity
from tests.golden import golden_sets, load_golden_set
from tests.models import assert_same, make_model, moments, parameters, trained_model

pytestmark = pytest.mark.gpu


def flat(tensors: dict[str, th.Tensor]) -> th.Tensor:
    return th.cat([value.flatten().float() for value in tensors.values()])


@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per_sample"])
@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_golden_parity(path, per_sample, monkeypatch):
    check_parity(load_golden_set(path), per_sample, monkeypatch, device="cuda", compile=False)


@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_golden_parity_compiled(path):
    """Four updates, which are not enough to be captured: the graphs are held to these below."""
    check_compiled_parity(path, per_sample=False, device="cuda")


def n_graphs(model: FlowRL) -> int:
    return len(model._captured_step._graphs)


@pytest.mark.parametrize(
    "options",
    [
        dict(precision="float32"),
        dict(precision="float32_fast"),
        dict(precision="bfloat16"),
        dict(policy_delay=3, learning_rate=lambda progress: 1e-3 * progress),
        dict(policy_kwargs=dict(net_arch=[16], batch_norm=False), spread_coef=0.1),
    ],
    ids=["float32", "float32_fast", "bfloat16", "delay_and_schedule", "targets"],
)
def test_cuda_graphs_compute_what_eager_updates_do(options):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(could not be compiled|can't be captured)")
        model = trained_model(device="cuda", compile=True, **options)
        eager = copy_of(model, device="cuda", compile=False, **options)
        before, ours, theirs = (flat(each) for each in (parameters(model), train_alike(model, 20), train_alike(eager, 20)))
    assert n_graphs(model) == 2 and n_graphs(eager) == 0
    apart = (ours - theirs).norm() / (theirs - before).norm()
    # Of the way gone: Adam makes whole steps of gradients that are next to nothing, and differ in the last digits
    assert apart < 0.01


@pytest.mark.parametrize("compile", [False, True])
def test_trains_and_moves_between_devices(compile, tmp_path):
    model = trained_model(device="cuda", compile=compile)
    assert all(value.is_cuda for value in parameters(model).values())
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    obs = np.stack([model.observation_space.sample() for _ in range(50)])
    actions, _ = model.predict(obs, deterministic=True)
    for device in ("cpu", "cuda"):
        loaded = FlowRL.load(tmp_path / "model", env=model.get_env(), device=device)
        loaded.load_replay_buffer(tmp_path / "buffer")
        assert_same(parameters(loaded), {name: value.to(device) for name, value in parameters(model).items()})
        assert_same(moments(loaded), {name: value.to(device) for name, value in moments(model).items()})
        np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], actions, rtol=1e-3, atol=1e-4)
        before = parameters(loaded)
        loaded.learn(30, reset_num_timesteps=False)
        assert not th.equal(parameters(loaded)["actor.velocity_net.0.weight"], before["actor.velocity_net.0.weight"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_replays_a_graph_that_follows_the_updates(deterministic):
    model = trained_model(device="cuda", compile=True)
    actor = model.policy.trained_actor if deterministic else model.actor
    obs = np.stack([model.observation_space.sample() for _ in range(16)])
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*can't be captured")
            for _ in range(5):
                th.manual_seed(0)
                played, _ = model.predict(obs, deterministic=deterministic)
        with th.no_grad():
            th.manual_seed(0)
            eager = actor(th.as_tensor(obs, device="cuda"), deterministic).cpu().numpy()
        np.testing.assert_allclose(played, model.policy.unscale_action(eager), rtol=1e-5, atol=1e-6)
        model.train(5, 32)
    assert len(actor._captured_calls._graphs) == 1


def test_equal_seeds_give_equal_models():
    assert_same(parameters(trained_model(device="cuda")), parameters(trained_model(device="cuda")))


@pytest.mark.parametrize("compile", [False, True])
def test_the_host_waits_once_for_many_updates(compile):
    model = trained_model(device="cuda", compile=compile)

    def waits(n_updates: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            th.cuda.set_sync_debug_mode("warn")
            try:
                model.train(n_updates, 32)
            finally:
                th.cuda.set_sync_debug_mode("default")
        return [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]

    waits(12)  # whatever happens once, capturing included
    few, many = waits(2), waits(20)
    assert few == many and len(many) == 1, (few, many)
    assert n_graphs(model) == (2 if compile else 0)


def test_a_run_is_resumed_in_graphs_bit_for_bit(tmp_path):
    whole = make_model(device="cuda").learn(200, callback=ResumableCheckpointCallback(tmp_path / "whole", 100))
    make_model(device="cuda").learn(100, callback=ResumableCheckpointCallback(tmp_path / "part", 100))
    resumed = FlowRL.load_checkpoint(tmp_path / "part", make_model().get_env(), device="cuda")
    resumed.learn(100, reset_num_timesteps=False)
    assert n_graphs(whole) == n_graphs(resumed) == 2
    assert_same(parameters(resumed), parameters(whole))


class Looking(BaseFeaturesExtractor):
    """Can't be captured, as the host looks at a value in it."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=3)
        self.scale = th.nn.Parameter(th.ones(()))

    def forward(self, observations):
        return observations * self.scale if self.scale.item() < 2 else observations


def test_an_extractor_that_looks_at_values_runs_without_graphs_and_is_named():
    options = dict(device="cuda", policy_kwargs=dict(net_arch=[16], features_extractor_class=Looking))
    with pytest.warns(UserWarning, match=r"can't be captured in a CUDA graph.*test_cuda\.py"):
        model = make_model(**options).learn(80)
    assert n_graphs(model) == 0
    before, ours = flat(parameters(make_model(**options))), flat(parameters(model))
    theirs = flat(parameters(make_model(compile=False, **options).learn(80)))
    assert (ours - theirs).norm() < 0.01 * (theirs - before).norm()


def test_parameters_set_in_mid_training_reach_the_graphs():
    model = make_model(device="cuda").learn(80)
    eager = copy_of(model, device="cuda", compile=False)
    model.set_parameters(copy.deepcopy(eager.get_parameters()))
    before, ours, theirs = (flat(each) for each in (parameters(model), train_alike(model, 20), train_alike(eager, 20)))
    assert (ours - theirs).norm() < 0.01 * (theirs - before).norm()


def test_a_trained_model_can_be_copied_and_diagnosed():
    callback = DiagnosticsCallback(every=30)
    model = make_model(device="cuda").learn(100, callback=CallbackList([callback]))
    assert_same(copy.deepcopy(model.policy).state_dict(), parameters(model))
