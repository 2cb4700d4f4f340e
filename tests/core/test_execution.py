"""The update through ``torch.compile`` and at each precision, against the eager one in float32."""

import copy
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_flowrl import FlowRL, execution, flowrl, update
from sb3_flowrl.execution import MaybeCompiled, matmul_precision
from tests.core.test_parity import LOSS_OF_NETWORK, LOSSES, check_gradients, check_parameters
from tests.golden import GoldenRun, authors_names, golden_sets, load_golden_set
from tests.marks import slow_except
from tests.models import assert_same, batch_of, batches_of, make_model, moments, noise_of, parameters, trained_model

th_compile = th.compile


def square(x: th.Tensor) -> th.Tensor:
    return x * x


@pytest.fixture
def traced(monkeypatch):
    """``torch.compile`` without code generation, which takes most of the time: what it traces runs by PyTorch's kernels."""
    monkeypatch.setattr(th, "compile", partial(th_compile, backend="aot_eager"))
    th.compiler.reset()


@pytest.fixture(scope="module", params=slow_except(["aot_eager"], ["aot_eager", "inductor"]))
def compiled_model(request) -> Iterator[FlowRL]:
    """A compiled model, by the backend that generates code and by the one that does not (``traced``)."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(th, "compile", partial(th_compile, backend=request.param))
        th.compiler.reset()
        yield trained_model(compile=True)


def train_alike(model: FlowRL, n_updates: int) -> dict[str, th.Tensor]:
    """Train with random numbers and replay samples that depend on nothing else."""
    set_random_seed(5)
    for _ in range(n_updates):
        model.train(1, 32)
    return parameters(model)


def copy_of(model: FlowRL, **options) -> FlowRL:
    """Of the networks, the optimisers and the replay buffer."""
    other = make_model(**options)
    other._setup_learn(0)
    other.set_parameters(copy.deepcopy(model.get_parameters()))  # type: ignore[arg-type]
    other.replay_buffer, other._n_updates = model.replay_buffer, model._n_updates
    return other


# --------------------------------------------------------------------------------------------------------------- the same


def test_compiled_and_eager_updates_are_the_same(compiled_model):
    eager = copy_of(compiled_model, compile=False)
    ours, theirs = train_alike(compiled_model, 30), train_alike(eager, 30)
    for name, value in ours.items():
        th.testing.assert_close(value, theirs[name], rtol=2e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    assert compiled_model._differentiate_values._compiled is not update.value_gradients
    assert compiled_model._differentiate_actor._compiled is not None and eager._differentiate_actor._compiled is None


def rounds_factors(precision: str) -> bool:
    """Whether matrix products run with factors rounded to bfloat16: "float32_fast"'s do where the processor has AMX."""
    a, b = th.randn(64, 64), th.randn(64, 64)
    with matmul_precision(precision, th.device("cpu")):
        return precision == "bfloat16" or not th.allclose(a @ b, (a.double() @ b.double()).float(), rtol=0, atol=1e-3)


class LinearExtractor(BaseFeaturesExtractor):
    """Features that are learned."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=4)
        self.linear = th.nn.Linear(observation_space.shape[0], 4)

    def forward(self, observations):
        return self.linear(observations).tanh()


@pytest.mark.parametrize("share_features_extractor", slow_except([False], [False, True]))
def test_features_extractors_learn_compiled_as_eagerly(share_features_extractor, traced):
    options = dict(
        policy_kwargs=dict(
            net_arch=[16], features_extractor_class=LinearExtractor, share_features_extractor=share_features_extractor
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as where it could not be compiled
        model = trained_model(compile=True, **options)
        eager = copy_of(model, compile=False, **options)
        before = parameters(model)
        ours, theirs = train_alike(model, 10), train_alike(eager, 10)
    for name, value in ours.items():
        th.testing.assert_close(value, theirs[name], rtol=2e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        assert not th.equal(value, before[name]), name


def check_compiled_parity(path: Path, per_sample: bool, **options) -> None:
    """What ``test_parity.py`` does with the eager update."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be compiled")
        data, prefix = load_golden_set(path), "ps/" if per_sample else ""
        run = GoldenRun(data, per_sample, compile=True, **options).run(patch)
    check_gradients(run, LOSS_OF_NETWORK)
    check_parameters(run, f"{prefix}after4/")
    for half in (run.model._differentiate_values, run.model._differentiate_actor):
        assert half._compiled is not None and half._compiled is not half.function


@pytest.mark.parametrize("per_sample", slow_except([False], [False, True]), ids=["scalar", "per_sample"])
@pytest.mark.parametrize("path", slow_except(golden_sets()[:1], golden_sets()), ids=lambda path: path.stem)
def test_golden_parity_holds_traced(path, per_sample, traced):
    """Through the graph that is compiled."""
    check_compiled_parity(path, per_sample)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float32_fast"])
@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per_sample"])
@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_golden_parity_holds_compiled(path, per_sample, precision):
    """Through the code that a compiler made of it."""
    if precision != "float32" and rounds_factors(precision):
        pytest.skip("on this processor float32_fast rounds to bfloat16")
    check_compiled_parity(path, per_sample, precision=precision)


VALUE_LOSSES = ("critic_loss", "behavior_critic_loss", "value_loss")
#: What the README states of the precisions that round.
LOSSES_WITHIN, PARAMETERS_WITHIN, GRADIENT_COSINE = 0.025, 1.2e-3, 0.9995


def test_a_setting_of_pytorchs_newer_interface_stays_and_does_no_harm():
    program = (
        "import torch, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "from tests.models import trained_model\n"
        "assert trained_model(device='cpu')._n_updates == 20\n"
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("per_sample", [False, True], ids=["scalar", "per_sample"])
@pytest.mark.parametrize("precision", ["float32_fast", "bfloat16"])
@pytest.mark.parametrize("path", golden_sets(), ids=lambda path: path.stem)
def test_golden_parity_of_the_other_precisions(path, precision, per_sample, monkeypatch):
    data = load_golden_set(path)
    run = GoldenRun(data, per_sample, precision=precision).run(monkeypatch)

    def authors(key: str) -> np.ndarray:  # what does not depend on the weights is not repeated under ps/
        return data[f"ps/{key}" if per_sample and f"ps/{key}" in data else key]

    is_exact = not rounds_factors(precision)
    for index, seen in enumerate(run.seen):
        for name in LOSSES & seen.keys():
            expected, within = authors(f"u{index}/{name}"), 1e-5 if is_exact else LOSSES_WITHIN
            np.testing.assert_allclose(seen[name], expected, rtol=within, err_msg=f"u{index}/{name}")
    if is_exact:
        check_parameters(run, f"{'ps/' if per_sample else ''}after4/")
    for name, values in run.parameters().items():
        np.testing.assert_allclose(values, authors(f"after4/{name}"), rtol=0, atol=PARAMETERS_WITHIN, err_msg=name)
    for network, loss in LOSS_OF_NETWORK.items():
        names = authors_names(network)
        ours = np.concatenate([run.seen[0][f"grad/{name}"].ravel() for name in names])
        theirs = np.concatenate([authors(f"u0/grad/{loss}/{name}").ravel() for name in names])
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine >= GRADIENT_COSINE, network


def test_bfloat16_compiled_stays_near_float32(traced):
    model = trained_model(policy_kwargs=dict(net_arch=[32]))
    losses = {}
    for name, options in dict(
        exact=dict(compile=False),
        half=dict(compile=False, precision="bfloat16"),
        both=dict(compile=True, precision="bfloat16"),
    ).items():
        other = copy_of(model, policy_kwargs=dict(net_arch=[32]), **options)
        set_random_seed(3)
        other.policy_delay = 2
        other._n_updates = 1  # without a step of the actor
        other.train(1, 256)
        losses[name] = th.tensor([other.logger.name_to_value[f"train/{loss}"] for loss in VALUE_LOSSES])
        assert all(parameter.dtype == th.float32 for parameter in other.policy.parameters())
    assert not th.equal(losses["exact"], losses["half"])
    th.testing.assert_close(losses["half"], losses["exact"], rtol=0.02, atol=1e-3)
    th.testing.assert_close(losses["both"], losses["exact"], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    "precision, machine, capability, warns",
    [
        ("bfloat16", "x86_64", "AVX2", True),
        ("bfloat16", "AMD64", "DEFAULT", True),
        ("bfloat16", "x86_64", "AVX512", False),
        ("bfloat16", "aarch64", "DEFAULT", False),
        ("auto", "x86_64", "AVX2", False),
    ],
)
def test_learning_in_bfloat16_warns_where_the_processor_emulates_it(precision, machine, capability, warns, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(th.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(precision=precision).learn(40)
    assert ["no instructions for bfloat16" in str(each.message) for each in caught].count(True) == warns


@pytest.mark.parametrize("rounds, resolved", [(True, "float32"), (False, "float32_fast")])
def test_auto_is_the_fastest_precision_that_is_exact_on_the_machine(rounds, resolved, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(execution, "_one_dnn_rounds", lambda: rounds)
    model = make_model(verbose=1)
    assert model.precision == "auto" and model.resolved_precision == model.settings.precision == resolved
    assert capsys.readouterr().out.count(f"Using {resolved} precision") == 1
    model.save(tmp_path / "model")
    monkeypatch.setattr(execution, "_one_dnn_rounds", lambda: not rounds)  # on another machine
    assert FlowRL.load(tmp_path / "model").settings.precision != resolved
    capsys.readouterr()
    assert make_model(precision="bfloat16", verbose=1).settings.precision == "bfloat16"  # what is asked for always wins
    assert "precision" not in capsys.readouterr().out


def test_auto_looks_at_what_the_processor_does():
    assert execution._one_dnn_rounds() == rounds_factors("float32_fast")
    before = th.get_rng_state()
    execution._one_dnn_rounds.cache_clear()
    execution._one_dnn_rounds()
    assert th.equal(before, th.get_rng_state())


def test_the_precision_of_the_process_is_put_back(monkeypatch):
    seen = []
    model = trained_model(precision="float32_fast")
    draw_noise = flowrl.draw_noise
    monkeypatch.setattr(
        flowrl, "draw_noise", lambda *args: seen.append(th.get_float32_matmul_precision()) or draw_noise(*args)
    )
    model.train(1, 8)
    assert seen == ["medium"] and th.get_float32_matmul_precision() == "highest"
    model.replay_buffer.rewards[:] = np.nan
    with pytest.raises(ValueError, match="rewards"):
        model.train(1, 8)
    assert th.get_float32_matmul_precision() == "highest"
    with monkeypatch.context() as patch:  # it raises where the user has set it through PyTorch's newer interface
        patch.delattr(th, "get_float32_matmul_precision")
        for precision in ("float32", "bfloat16"):
            with matmul_precision(precision, th.device("cpu")):
                pass
    with matmul_precision("float32_fast", th.device("cuda")):
        assert th.get_float32_matmul_precision() == "high"  # TF32
    th.set_float32_matmul_precision("high")
    try:
        trained_model().train(1, 8)  # what the user has set stays
        assert th.get_float32_matmul_precision() == "high"
    finally:
        th.set_float32_matmul_precision("highest")


# ------------------------------------------------------------------------------------------------------------- how it runs


BATCH_NORM = dict(spread_coef="auto", policy_kwargs=dict(net_arch=[16], batch_norm=True))


def test_batch_normalised_critics_and_spread_learn_compiled_as_eagerly(traced):
    model = trained_model(compile=True, **BATCH_NORM)
    eager = copy_of(model, compile=False, **BATCH_NORM)
    eager.log_spread_coef.data.copy_(model.log_spread_coef)
    ours, theirs = train_alike(model, 10), train_alike(eager, 10)
    for name, value in ours.items():
        th.testing.assert_close(value, theirs[name], rtol=2e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    th.testing.assert_close(model.log_spread_coef, eager.log_spread_coef, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, dict(precision="bfloat16", flow_steps=3, guidance="reference", per_sample=False), BATCH_NORM]
)
def test_the_update_is_one_graph_without_a_look_at_a_value(options, traced):
    """``fullgraph`` raises at a graph break, and Dynamo breaks the graph at ``.item()`` and at shapes that depend on data."""
    model = trained_model(compile=False, **options)
    common = (model.policy, model.settings, batch_of(model, 32), noise_of(model, 32))
    critic, behavior = list(model.critic.parameters()), [
        *model.behavior_critic.parameters(),
        *model.behavior_value.parameters(),
    ]
    for function, arguments in (
        (update.value_gradients, (*common, True, critic + behavior)),
        (update.value_gradients, (*common, False, critic)),
        (update.actor_gradients, (*common, th.zeros(32, 1), th.tensor(0.5), list(model.actor.parameters()))),
    ):
        with th._dynamo.config.patch(trace_autograd_ops=True):
            explained = th._dynamo.explain(function)(*arguments)
        assert explained.graph_count == 1 and explained.graph_break_count == 0, explained.break_reasons


class Looks(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator."""

    def __init__(self):
        super().__init__()
        self.looks = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
            self.looks.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, BATCH_NORM], ids=["defaults", "batch_norm"])
def test_train_looks_at_no_value_before_its_end(options, monkeypatch):
    model = trained_model(**options)
    batches = batches_of(model, 4, 16)
    monkeypatch.setattr(flowrl, "sample_batches", lambda *args, **kwargs: batches)
    with Looks() as mode:
        model.train(4, 16)
        assert mode.looks == []
        batches[0].rewards.sum().item()
        assert mode.looks == ["aten._local_scalar_dense.default"]


def test_nothing_is_compiled_again_after_the_third_call(compiled_model, monkeypatch):
    for _ in range(3):
        compiled_model.train(2, 32)
    compiled_model.replay_buffer.rewards *= 2
    monkeypatch.setattr(compiled_model, "lr_schedule", lambda progress_remaining: 1e-5)
    with th._dynamo.config.patch(error_on_recompile=True):
        compiled_model.train(1, 32)
        compiled_model.train(4, 32)
        functions = (compiled_model._differentiate_values, compiled_model._differentiate_actor)
        before = [function._compiled for function in functions]
        with pytest.warns(UserWarning, match=r"could not be compiled.*RecompileError"):  # what is asserted can be seen
            compiled_model.train(1, 16)
        for function, compiled in zip(functions, before, strict=True):
            function._compiled = compiled


def test_many_models_in_one_process_do_not_use_up_a_common_limit(traced):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for size in range(2, 14):
            function = MaybeCompiled(square, th.device("cpu"))
            assert th.equal(function(th.ones(size), compiled=True), th.ones(size))


@pytest.mark.parametrize("compiles", slow_except(["auto", False], ["auto", True, False]))
def test_auto_compiles_when_a_run_is_long_enough(compiles, traced, monkeypatch):
    monkeypatch.setattr(execution, "AUTO_COMPILE_UPDATES", 4)
    model = make_model(compile=compiles).learn(54)
    began = {}
    for name in ("values", "actor"):
        function = getattr(model, f"_differentiate_{name}")
        began[name] = function._compiled is not None
    assert began == dict.fromkeys(began, compiles is True) and model._n_updates == 4
    model.train(1, 8)
    assert (model._differentiate_values._compiled is not None) == (compiles is not False)


# ------------------------------------------------------------------------------------------------ saving and falling back


def test_compiled_models_are_saved_loaded_and_go_on(compiled_model, tmp_path):
    compiled_model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=compiled_model.get_env())
    assert loaded.compile is True and loaded._differentiate_values._compiled is None
    assert_same(parameters(compiled_model), parameters(loaded))
    loaded._setup_learn(0)
    loaded.replay_buffer = compiled_model.replay_buffer
    assert_same(train_alike(loaded, 3), train_alike(compiled_model, 3))
    assert_same(moments(loaded), moments(compiled_model))

    for other in (pickle.loads(pickle.dumps(compiled_model.policy)), copy.deepcopy(compiled_model.policy)):
        obs = compiled_model.observation_space.sample()
        action, expected = (policy.predict(obs, deterministic=True)[0] for policy in (other, compiled_model.policy))
        np.testing.assert_array_equal(action, expected)


def test_what_was_compiled_stays_behind_when_copied_or_pickled(traced):
    function = MaybeCompiled(square, th.device("cpu"))
    assert function(th.tensor(3.0), compiled=True) == 9
    for other in (copy.deepcopy(function), pickle.loads(pickle.dumps(function))):
        assert function._compiled is not None and other._compiled is None
        assert other(th.tensor(3.0), compiled=True) == 9


def test_what_can_not_be_compiled_runs_eagerly_and_says_so(traced):
    def guidance(q_behavior, q_policy, w2_coef):
        return th.full_like(q_policy, w2_coef * (1.0 if q_behavior.mean().item() > 0 else 2.0))

    with pytest.warns(UserWarning, match=r"actor_gradients could not be compiled, and runs eagerly.*compile=False") as warned:
        compiled = make_model(compile=True, guidance=guidance).learn(56)
    assert len([warning for warning in warned if "could not be compiled" in str(warning.message)]) == 1  # not at each update
    eager = make_model(compile=False, guidance=guidance).learn(56)
    for name, value in parameters(eager).items():
        th.testing.assert_close(parameters(compiled)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_cache_that_becomes_a_file_is_named_and_the_updates_run_eagerly(tmp_path):
    cache = tmp_path / "cache"
    replace = f"import os, shutil; path = {str(cache)!r}; shutil.rmtree(path, ignore_errors=True); open(path, 'w').close()"
    program = WITHOUT_COMPILER.replace(
        "model = make_model(compile=True).learn(54)", f"model = make_model(compile=True); {replace}; model.learn(54)"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("4 2 value_gradients could not be compiled"), run.stdout
    assert f"delete {str(cache)!r}, which PyTorch then creates again" in run.stdout and "File exists" in run.stdout


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ImportError("x.so: file too short"), AssertionError("half imported")]
)
def test_a_compiler_whose_cache_is_damaged_does_not_end_the_training(error, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(execution, "_compile", lambda function, device: fail)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/where/it/is")
    with pytest.warns(
        UserWarning,
        match=f"gradients could not be compiled.*delete '/where/it/is', which.*{re.escape(str(error))}",
    ):
        assert make_model(compile=True).learn(54)._n_updates == 4


def test_an_error_of_the_users_guidance_comes_through(traced):
    model = make_model(compile=True)
    model.guidance = lambda q_behavior, q_policy, w2_coef: q_policy.mean()
    with (
        pytest.warns(UserWarning, match="could not be compiled"),
        pytest.raises(ValueError, match="returned weights of shape"),
    ):
        model.learn(56)


WITHOUT_COMPILER = """
import warnings
from tests.models import make_model
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = make_model(compile=True).learn(54)
said = [str(warning.message) for warning in caught if "could not be compiled" in str(warning.message)]
print(model._n_updates, len(said), said[0])
"""


@pytest.mark.slow
def test_without_a_compiler_it_runs_eagerly_and_says_so(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("4 2 value_gradients could not be compiled"), run.stdout
    assert "C++ compiler" in run.stdout and "CXX" in run.stdout
