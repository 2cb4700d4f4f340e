"""
On CUDA the updates are those of the CPU: the authors' numbers, in CUDA graphs too, without a wait for the device in between.
"""

import copy
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CallbackList

from sb3_flowrl import FlowRL
from sb3_flowrl.diagnostics import DiagnosticsCallback
from tests.golden import golden_sets, load_golden_set
from tests.models import assert_same, make_model, moments, parameters, trained_model
from tests.test_execution import check_compiled_parity, copy_of, train_alike
from tests.test_parity import check_parity

pytestmark = pytest.mark.gpu


def flat(tensors: dict[str, th.Tensor]) -> th.Tensor:
    return th.cat([value.flatten().float() for value in tensors.values()])


@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per_sample"])
@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_golden_parity(path, per_sample, monkeypatch):
    check_parity(load_golden_set(path), per_sample, monkeypatch, device="cuda", compile=False)


@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_golden_parity_in_cuda_graphs(path):
    check_compiled_parity(path, per_sample=False, device="cuda")


@pytest.mark.parametrize("precision", ["float32", "float32_fast", "bfloat16"])
def test_cuda_graphs_compute_what_eager_updates_do(precision):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be compiled")
        model = trained_model(device="cuda", compile=True, precision=precision)
        eager = copy_of(model, device="cuda", compile=False, precision=precision)
        before, ours, theirs = (flat(each) for each in (parameters(model), train_alike(model, 20), train_alike(eager, 20)))
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

    waits(4)  # whatever happens once
    few, many = waits(2), waits(20)
    assert few == many and len(many) == 1, (few, many)


def test_a_trained_model_can_be_copied_and_diagnosed():
    callback = DiagnosticsCallback(every=30)
    model = make_model(device="cuda").learn(100, callback=CallbackList([callback]))
    assert_same(copy.deepcopy(model.policy).state_dict(), parameters(model))
