"""rl_zoo3's commands with ``--algo flowrl``, each in a process of its own on a real environment."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import optuna
import yaml
from huggingface_hub import ModelCard
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rl_zoo3.exp_manager import ExperimentManager
from torch import nn

from sb3_flowrl import FlowRL, zoo
from sb3_flowrl.zoo import registration, tune
from sb3_flowrl.zoo.hub import complete_folder
from sb3_flowrl.zoo.search_space import DEFAULT_TRIAL, convert_flowrl_params, sample_flowrl_params
from tests import paper_tasks
from tests.integration.test_envs_rendering import BACKEND, needs_renderer
from tests.marks import slow_except

ROOT = Path(__file__).parents[2]
SMALL = ["learning_starts:100", "policy_kwargs:dict(net_arch=[16])", "buffer_size:5000"]
TRAIN = ["rl_zoo3.train", "--algo", "flowrl", "--env", "Pendulum-v1", "--num-threads", "1", "-params", *SMALL]


EVALUATE = ["-n", "400", "--eval-freq", "200", "--eval-episodes", "2"]


def python(*arguments: str, cwd: Path, fails: bool = False, environment: dict[str, str] | None = None) -> str:
    """Run Python, and return what it printed."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **(environment or {})}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert (result.returncode != 0) == fails, result.stdout
    return result.stdout


def module(name: str, *arguments: str, cwd: Path, **kwargs) -> str:
    return python("-m", name, *arguments, cwd=cwd, **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run of 400 steps in ``logs``: evaluated, with checkpoints and replay buffer."""
    folder = tmp_path_factory.mktemp("zoo")
    arguments = [*EVALUATE, "--save-freq", "200", "--save-replay-buffer"]
    output = module(*TRAIN, *arguments, "--progress", "-tb", "tb", "--seed", "1", cwd=folder)
    assert "400/400" in output  # the progress bar
    return folder


def test_train(trained):
    run = trained / "logs" / "flowrl" / "Pendulum-v1_1"
    model = FlowRL.load(run / "Pendulum-v1.zip")
    assert model.num_timesteps == 400 and model._n_updates == 300 and model.buffer_size == 5_000
    files = {path.name for path in run.iterdir()}
    assert {"best_model.zip", "evaluations.npz", "replay_buffer.pkl", "rl_model_200_steps.zip"} <= files
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [200, 400]
    assert list((trained / "tb").rglob("events.out.tfevents*"))


def test_train_takes_the_packaged_hyperparameters(trained):
    output = module("rl_zoo3.train", "--algo", "flowrl", "--env", "Pendulum-v1", "-n", "10", "-f", "other", cwd=trained)
    assert f"Loading hyperparameters from: {zoo.hyperparams_file()}" in output
    assert "'learning_starts', 1000" in output
    if paper_tasks.installed("mujoco"):
        output = module("rl_zoo3.train", "--algo", "flowrl", "--env", "Hopper-v5", "-n", "10", "-f", "other", cwd=trained)
        assert "Using 'default' hyperparameters" in output


def test_train_goes_on(trained):
    agent = "logs/flowrl/Pendulum-v1_1/Pendulum-v1.zip"
    output = module(*TRAIN, "-n", "150", "-i", agent, "-f", "continued", "--eval-freq", "-1", cwd=trained)
    assert "Loading pretrained agent" in output and "Loading replay buffer" in output
    model = FlowRL.load(trained / "continued" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip")
    assert model._n_updates == 300 + 50  # the 100 random first steps come again, as for all of rl_zoo3's algorithms


@pytest.mark.slow
def test_train_in_subprocesses_with_a_file_of_ones_own(trained):
    own = {"Pendulum-v1": dict(n_timesteps=300, policy="MlpPolicy", n_envs=2, learning_starts=100, w2_coef=0.5)}
    own["Pendulum-v1"].update(policy_kwargs="dict(net_arch=[16])", train_freq=1, gradient_steps=-1, normalize=True)
    (trained / "own.yml").write_text(yaml.dump(own))
    arguments = ["--algo", "flowrl", "--env", "Pendulum-v1", "--vec-env", "subproc", "-conf", "own.yml", "-f", "own"]
    module("rl_zoo3.train", *arguments, "--eval-freq", "-1", cwd=trained)
    model = FlowRL.load(trained / "own" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip")
    assert model.n_envs == 2 and model.w2_coef == 0.5 and model._n_updates == 200
    assert (trained / "own" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1" / "vecnormalize.pkl").exists()


def test_train_misses_a_file_that_the_user_named(trained):
    output = module(*TRAIN, "-n", "10", "-conf", "missing.yml", cwd=trained, fails=True)
    assert "No such file or directory: 'missing.yml'" in output


@pytest.mark.parametrize("which", slow_except([""], ["", "--load-best", "--load-last-checkpoint", "--stochastic"]))
def test_enjoy(trained, which):
    arguments = ["--algo", "flowrl", "--env", "Pendulum-v1", "--no-render", "-n", "400", "-f", "logs", "--exp-id", "1"]
    output = module("rl_zoo3.enjoy", *arguments, *which.split(), cwd=trained)
    assert "2 Episodes" in output and re.search(r"Mean reward: -\d+", output)


def test_record_video(trained):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    arguments = ["--algo", "flowrl", "--env", "Pendulum-v1", "-n", "20", "-f", "logs", "-o", "videos", "--exp-id", "1"]
    module("rl_zoo3.record_video", *arguments, cwd=trained, environment={"SDL_VIDEODRIVER": "dummy"})
    assert list((trained / "videos").glob("*.mp4"))


# 300 meters from where the cheetah starts nothing else is in sight. It jumps there after the first frame, because a camera
# that does not follow looks at where the robot is in that one
RUNAWAY = """
import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

class Runaway(HalfCheetahEnv):
    def step(self, action):
        if self.data.qpos[0] < 100:
            self.set_state(self.data.qpos + np.array([300] + 8 * [0]), self.data.qvel)
        return super().step(action)

gym.register("Runaway-v0", Runaway, max_episode_steps=1000)
"""


@pytest.mark.slow
@needs_renderer
@paper_tasks.needs_mujoco
def test_record_video_follows_the_robot(tmp_path):
    moviepy = pytest.importorskip("moviepy", minversion="2")
    (tmp_path / "runaway.py").write_text(RUNAWAY)
    start = "import runpy, runaway; runpy.run_module('rl_zoo3.{}', run_name='__main__')"
    arguments = ["--algo", "flowrl", "--env", "Runaway-v0", "-f", "logs"]
    python("-c", start.format("train"), *arguments, "-n", "110", "--eval-freq", "-1", "-params", *SMALL, cwd=tmp_path)
    documented = (ROOT / "docs" / "rl_zoo3.md").read_text().split("python -m rl_zoo3.record_video ")[1].splitlines()[0]
    camera = shlex.split(documented)[-2:]
    assert camera[0] == "--env-kwargs"
    record = [*arguments, "-n", "20", *camera]
    python("-c", start.format("record_video"), *record, cwd=tmp_path, environment={"MUJOCO_GL": BACKEND})
    (video,) = tmp_path.rglob("*.mp4")
    with moviepy.VideoFileClip(str(video)) as clip:
        *_, last = clip.iter_frames()
    red, _, blue = np.moveaxis(last.astype(int), -1, 0)
    assert (red > blue + 30).mean() > 0.005  # the cheetah is brown, the sky is not


@pytest.mark.slow
def test_plots(trained):
    module(*TRAIN, *EVALUATE, "--seed", "2", cwd=trained)  # intervals need two runs
    arguments = ["-a", "flowrl", "-e", "Pendulum-v1", "-f", "logs"]
    module("rl_zoo3.plots.plot_train", *arguments, cwd=trained)
    output = module("rl_zoo3.plots.all_plots", *arguments, "--no-display", "-o", "results", cwd=trained)
    assert "|Pendulum-v1 |" in output  # a row of the table of results
    module(
        "rl_zoo3.plots.plot_from_file", "-i", "results.pkl", "-o", "curve.png", "--format", "png", "-r", "-iqm", cwd=trained
    )
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_push_to_hub_and_the_console_script(trained):
    assert "flowrl" in module("rl_zoo3.push_to_hub", "--help", cwd=trained)
    script = Path(sys.executable).parent / "rl_zoo3"
    output = python(str(script), "enjoy", "--help", cwd=trained)
    assert "flowrl" in output


OFFLINE_HUB = """
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

HfApi.create_repo = lambda self, **kwargs: "https://huggingface.co/someone"
HfApi.snapshot_download = lambda self, repo_id, local_dir: local_dir.mkdir(parents=True)
HfApi.upload_folder = lambda self, *, repo_id, folder_path, **kwargs: print(f"uploaded {folder_path} to {repo_id}")
def download(repo_id, filename, **kwargs):
    path = Path("hub", repo_id.partition("/")[2], filename)
    if not path.is_file():
        raise EntryNotFoundError(filename)
    return str(path)
huggingface_hub.hf_hub_download = download
"""


@pytest.mark.parametrize("command", slow_except([], ["rl_zoo3.push_to_hub", "sb3_flowrl.zoo push_to_hub"]))
def test_push_to_hub_says_how_to_install_flowrl_and_adds_a_safe_policy(trained, tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(OFFLINE_HUB)
    search_path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = [*command.split(), "--algo", "flowrl", "--env", "Pendulum-v1", "-f", str(trained / "logs"), "--exp-id", "1"]
    arguments += ["-orga", "someone", "-name", "agent", "--no-render"]
    output = module(*arguments, cwd=tmp_path, environment={"PYTHONPATH": search_path})
    assert "uploaded hub/agent to someone/agent" in output

    card = ModelCard.load(tmp_path / "hub" / "agent" / "README.md")
    assert {"sb3-flowrl", "stable-baselines3", "Pendulum-v1"} <= set(card.data.tags)
    assert 'pip install "sb3-flowrl[zoo,safe]"' in card.text and "pip install rl_zoo3" not in card.text
    assert "--env Pendulum-v1 -orga someone -name agent" in card.text and "https://arxiv.org/abs/2506.12811" in card.text
    assert "('learning_starts', 100)" in card.text  # rl_zoo3's list of hyperparameters
    assert 'hf_hub_download("someone/agent", "policy.safetensors")' in card.text
    policy = FlowRL.load_policy_safe(tmp_path / "hub" / "agent" / "policy.safetensors", device="cpu")
    model = FlowRL.load(trained / "logs" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip", device="cpu")
    observations = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(policy.predict(observations, deterministic=True)[0], expected)

    command = command.replace("push_to", "load_from")
    arguments = ["--algo", "flowrl", "--env", "Pendulum-v1", "-f", "logs", "-orga", "someone", "-name", "agent"]
    environment = {"PYTHONPATH": search_path, "TRUST_REMOTE_CODE": "True"}
    assert "No normalization file" in module(*command.split(), *arguments, cwd=tmp_path, environment=environment)
    loaded = FlowRL.load(tmp_path / "logs" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip", device="cpu")
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)


def test_push_to_hub_leaves_the_cards_of_other_algorithms_as_they_are(tmp_path):
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "sac-Pendulum-v1.zip").touch()
    complete_folder(tmp_path, "someone/agent")
    assert (tmp_path / "README.md").read_text() == "a card"
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "sac-Pendulum-v1.zip"}


HYPERPARAMS = yaml.safe_load(zoo.hyperparams_file().read_text())


def test_each_entry_of_the_hyperparams_file_says_what_the_default_does_not():
    assert [name for name, entry in HYPERPARAMS.items() if name != "default" and entry == HYPERPARAMS["default"]] == []
    assert all(entry["n_timesteps"] >= 20_000 for entry in HYPERPARAMS.values())


@pytest.mark.parametrize("name", HYPERPARAMS)
def test_flowrl_takes_the_hyperparameters_of_each_entry(name, tmp_path):
    env_id = "Hopper-v5" if name == "default" else name
    try:
        gym.make(env_id)
    except (gym.error.DependencyNotInstalled, gym.error.NameNotFound) as error:
        pytest.skip(str(error))
    zoo.register()
    small = dict(buffer_size=50)
    manager = ExperimentManager(SimpleNamespace(), "flowrl", env_id, str(tmp_path), hyperparams=small, verbose=0, device="cpu")
    model, _ = manager.setup_experiment()
    assert isinstance(model, FlowRL) and model.gamma == HYPERPARAMS[name].get("gamma", 0.99)


# -------------------------------------------------------------------------------------------------------------------- the hook


NO_HOOK = {"SB3_FLOWRL_NO_ZOO_HOOK": "1"}


def hook_state(code: str, environment: dict[str, str] | None = None) -> list[str]:
    program = "import sys; from sb3_flowrl.zoo import startup;" + code
    return python("-c", program, cwd=ROOT, environment=environment).split()


FINDERS = "print(sum(type(finder).__name__ == '_ZooFinder' for finder in sys.meta_path))"


def test_hook_is_installed_once_and_can_be_turned_off():
    # the environment that the tests run in may have the start-up file or not: install() comes to the same
    assert hook_state("startup.install(); startup.install();" + FINDERS) == ["1"]
    assert hook_state("startup.install();" + FINDERS, NO_HOOK) == ["0"]
    assert hook_state("import rl_zoo3; print('flowrl' in rl_zoo3.ALGOS)", NO_HOOK) == ["False"]


def test_hook_imports_nothing_but_os_and_sys():
    program = (
        "import os, sys; before = set(sys.modules);"
        "from sb3_flowrl.zoo import startup; startup.install(); print(*sorted(set(sys.modules) - before))"
    )
    # -S: without start-up files, so that no other one counts
    modules = python("-S", "-c", program, cwd=ROOT, environment=NO_HOOK).split()
    assert modules == ["sb3_flowrl", "sb3_flowrl.zoo", "sb3_flowrl.zoo.startup"]


def test_hook_leaves_no_trace_on_the_modules_it_completes():
    program = (
        "startup.install(); import rl_zoo3.utils as u; print(type(u.__loader__).__name__, type(u.__spec__.loader).__name__)"
    )
    assert hook_state(program) == ["SourceFileLoader"] * 2


def test_what_has_moved_is_said_in_one_line(capsys):
    import types

    registration.complete(types.ModuleType("rl_zoo3.utils"))
    assert capsys.readouterr().err == (
        "sb3-flowrl: could not register 'flowrl' in rl_zoo3.utils (AttributeError: module 'rl_zoo3.utils' has no attribute "
        "'ALGOS'). It is made for rl_zoo3 2.9. SB3_FLOWRL_NO_ZOO_HOOK=1 turns the registration off.\n"
    )


def test_a_config_that_has_moved_is_said_too_and_only_for_flowrl(capsys):
    import types

    module = types.ModuleType("rl_zoo3.exp_manager")
    module.__file__ = __file__
    module.ExperimentManager = type("ExperimentManager", (), {"__init__": lambda self, algo: setattr(self, "algo", algo)})  # type: ignore
    registration.complete(module)
    module.ExperimentManager("sac")
    assert capsys.readouterr().err == ""
    module.ExperimentManager("flowrl")
    assert "rl_zoo3.exp_manager (ExperimentManager has no attribute 'config')" in capsys.readouterr().err


def test_registration_twice_changes_nothing():
    import rl_zoo3.exp_manager as exp_manager

    zoo.register()
    registered = exp_manager.ALGOS["flowrl"], exp_manager.HYPERPARAMS_SAMPLER["flowrl"], exp_manager.ExperimentManager.__init__
    zoo.register()
    assert registered[0] is FlowRL
    again = exp_manager.ALGOS["flowrl"], exp_manager.HYPERPARAMS_SAMPLER["flowrl"], exp_manager.ExperimentManager.__init__
    assert again == registered


def test_fallback_without_the_hook(tmp_path):
    arguments = ["train", *TRAIN[1:], "-n", "120", "--eval-freq", "-1"]
    module("sb3_flowrl.zoo", *arguments, cwd=tmp_path, environment=NO_HOOK)
    assert FlowRL.load(tmp_path / "logs" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip")._n_updates == 20
    assert "flowrl" in module("sb3_flowrl.zoo", "push_to_hub", "--help", cwd=tmp_path, environment=NO_HOOK)
    assert "python -m sb3_flowrl.zoo <command>" in module("sb3_flowrl.zoo", cwd=tmp_path, fails=True)


# ---------------------------------------------------------------------------------------------------------------------- tuning


def test_trials_of_before_a_parameter_was_searched_stay_what_they_were():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    extra = dict(using_her_replay_buffer=False, her_kwargs={})
    study.optimize(lambda trial: len(sample_flowrl_params(trial, 1, 1, extra)), n_trials=1)
    added = ("spread_coef", "batch_norm", "actor_activation_fn", "adam_beta1")
    before = {name: value for name, value in study.best_trial.params.items() if name not in added}
    converted = convert_flowrl_params(before)
    policy_kwargs = converted["policy_kwargs"]
    assert converted["spread_coef"] == 0.0 and policy_kwargs["batch_norm"] is False
    assert policy_kwargs["activation_fn"]["pi"] is nn.ELU and policy_kwargs["optimizer_kwargs"]["betas"] == (0.9, 0.999)


def test_the_default_trial_is_flowrl_at_its_defaults():
    study = optuna.create_study()
    study.enqueue_trial(DEFAULT_TRIAL)
    sampled = {}
    extra = dict(using_her_replay_buffer=False, her_kwargs={})
    study.optimize(lambda trial: len(sampled.update(sample_flowrl_params(trial, 1, 1, extra)) or []), n_trials=1)
    assert study.trials[0].params == DEFAULT_TRIAL
    trial, default = (FlowRL("MlpPolicy", "Pendulum-v1", buffer_size=1, **arguments) for arguments in (sampled, {}))
    for name in sampled.keys() - {"policy_kwargs", "gamma"}:
        assert getattr(trial, name) == getattr(default, name), name
    assert trial.gamma == pytest.approx(default.gamma)
    assert str(trial.policy) == str(default.policy)
    for name in ("actor", "critic"):
        groups = ({**getattr(model, name).optimizer.param_groups[0], "params": None} for model in (trial, default))
        assert next(groups) == next(groups)


@pytest.mark.parametrize("seed", range(5))
def test_sampled_and_stored_parameters_give_the_same_model(seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    sampled = {}

    def objective(trial):
        sampled.update(sample_flowrl_params(trial, 1, 1, dict(using_her_replay_buffer=False, her_kwargs={})))
        return 0.0

    study.optimize(objective, n_trials=1)
    trial = study.best_trial
    assert convert_flowrl_params(trial.params) == sampled
    assert trial.user_attrs["gamma"] == sampled["gamma"] and trial.user_attrs["batch_size"] == sampled["batch_size"]
    model = FlowRL("MlpPolicy", "Pendulum-v1", buffer_size=1, **sampled)
    assert (model.flow_steps, model.guidance, model.matching) == (
        sampled["flow_steps"],
        sampled["guidance"],
        sampled["matching"],
    )


OPTIMIZE = ["-optimize", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots"]


def test_optimize_with_pruning_in_two_threads(tmp_path):
    arguments = [
        "-n",
        "300",
        "--n-trials",
        "3",
        "--n-jobs",
        "2",
        "--sampler",
        "tpe",
        "--pruner",
        "median",
        "--n-startup-trials",
        "1",
    ]
    output = module(*TRAIN, *arguments, *OPTIMIZE, "--optimization-log-path", "trials", cwd=tmp_path)
    assert "Number of finished trials:  3" in output
    # a trial that never updates is no trial
    models = [FlowRL.load(path) for path in tmp_path.glob("trials/trial_*/best_model.zip")]
    assert len(models) == 3 and all(model._n_updates > 0 for model in models)
    assert len({model.learning_rate for model in models}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["study.log", "sqlite:///study.db"])
def test_two_processes_finish_one_study_and_a_model_is_trained_from_it(tmp_path, storage):
    command = ["-m", "sb3_flowrl.zoo.command", "tune", "--timesteps", "300", "--learning-starts", "200", "--evaluations", "1"]
    command += ["--params", "buffer_size:777", "--optimization-log-path", "models"]  # the latter is rl_zoo3's
    command += ["--workers", "2", "--folder", ".", "--storage", storage]
    n_trials = 3
    if storage.startswith("sqlite"):  # a study that goes on: there, a second worker waits until the first trial is taken
        python(*command, "--trials", "1", cwd=tmp_path)
        n_trials = 4
    output = python(*command, "--trials", str(n_trials), cwd=tmp_path)
    assert "best: trial" in output
    models = [FlowRL.load(path) for path in tmp_path.glob("models/trial_*/best_model.zip")]
    assert len(models) == n_trials and all((model.buffer_size, model.learning_starts) == (777, 200) for model in models)
    for picture in ("history.png", "importance.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    study = load_study(tmp_path, storage)
    assert len(study.trials) == n_trials
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials)
    assert len({trial.user_attrs["worker"] for trial in study.trials[-3:]}) == 2
    assert [trial.number for trial in study.trials if trial.params == DEFAULT_TRIAL] == [0]

    arguments = ["--storage", storage, "--study-name", "flowrl", "--trial-id", "1", "-n", "120", "-f", "best"]
    # rl_zoo3 takes -params last, and the study's policy_kwargs are what is tested
    train = [*TRAIN[: TRAIN.index("-params")], *arguments, "-params", "learning_starts:100"]
    assert "Loading from Optuna study..." in module(*train, cwd=tmp_path)
    model = FlowRL.load(tmp_path / "best" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip")
    expected = convert_flowrl_params(study.trials[1].params)
    assert model.w2_coef == expected["w2_coef"] and model.policy_kwargs == expected["policy_kwargs"] and model._n_updates == 20


def load_study(folder: Path, storage: str) -> optuna.Study:
    if storage.endswith(".log"):
        return optuna.load_study(storage=JournalStorage(JournalFileBackend(str(folder / storage))), study_name="flowrl")
    return optuna.load_study(storage=storage.replace("///", f"///{folder}/"), study_name="flowrl")


@pytest.mark.parametrize("evaluations", [1, 2, 3, 5, 6, 10])
@pytest.mark.parametrize("pruner", ["median", "halving", "none"])
def test_tune_knows_when_rl_zoo3_begins_to_prune(pruner, evaluations):
    manager = SimpleNamespace(n_startup_trials=1, n_evaluations=evaluations)
    study = optuna.create_study(direction="maximize", pruner=ExperimentManager._create_pruner(manager, pruner))
    good, bad = study.ask(), study.ask()
    pruned = []
    for index in range(1, evaluations + 1):
        good.report(1.0, index)
        good.should_prune()  # halving notes here how far the trial has come
    study.tell(good, 1.0)
    for index in range(1, evaluations + 1):
        bad.report(0.0, index)
        pruned += [index] if bad.should_prune() else []
    expected = pruned[0] * (600 // evaluations) if pruned else 600
    assert tune.first_pruning(pruner, 600, evaluations) == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--timesteps", "25000", "--learning-starts", "5000"], "after 5000 steps, .* use --evaluations 6 or --pruner none"),
        (["--timesteps", "12000", "--learning-starts", "5000"], "--learning-starts 5000: use --pruner none"),
        (["--timesteps", "25000", "--learning-starts", "25000"], "leaves nothing of --timesteps 25000"),
        (["--evaluations", "0"], "--evaluations 0 is not between 1 and"),
    ],
)
def test_tune_refuses_what_would_compare_networks_that_have_not_learned(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["tune.py", *arguments, "--folder", str(tmp_path / "study")])
    monkeypatch.delattr(tune.Tuner, "run")
    with pytest.raises(SystemExit, match="2"):
        tune.main()
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("queue_is_safe", [False, True])
def test_no_two_workers_meet_at_a_queued_trial_where_both_would_get_it(monkeypatch, queue_is_safe):
    study = optuna.create_study()
    workers, together, beside = [], [], []

    class Worker:
        """Starts, takes a trial, runs it, and ends: a step each time that the tuner looks."""

        def __init__(self, command):
            if study.get_trials(states=[TrialState.WAITING]):
                together.append(any(worker.trial is None for worker in workers))
                beside.append(any(worker.trial is not None and worker.returncode is None for worker in workers))
            self.pid, self.trial, self.returncode, self.looks = 10**9 + len(workers), None, None, 0
            workers.append(self)

        def poll(self):
            self.looks += 1
            if self.looks == 3:
                self.trial = study.ask()
                self.trial.set_user_attr("worker", tune.worker_name(self.pid))
                if self.trial.number == 0:  # as if another worker had died
                    study.enqueue_trial({"x": 1.0})
            elif self.looks == 6:
                study.tell(self.trial, 1.0)
                self.returncode = 0
            return self.returncode

    monkeypatch.setattr(tune.subprocess, "Popen", Worker)
    monkeypatch.setattr(tune.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(tune.Tuner, "is_orphan", lambda self, trial: False)
    study.enqueue_trial({"x": 0.0})
    tune.Tuner(study, [], n_trials=4, n_workers=2, queue_is_safe=queue_is_safe).run()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert any(together) == queue_is_safe
    assert queue_is_safe or any(beside)  # a worker that has its trial stands in nobody's way


@pytest.mark.parametrize("storage, queue_is_safe", [([], True), (["--storage", "sqlite:///study.db"], False)])
def test_tune_has_a_journal_of_its_own_and_knows_sqlite(tmp_path, monkeypatch, storage, queue_is_safe):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tune.py", *storage])
    asked = {}
    monkeypatch.setattr(tune.Tuner, "run", lambda tuner: asked.update(vars(tuner)))
    tune.main()
    assert asked["queue_is_safe"] == queue_is_safe
    assert (tmp_path / "runs" / "tune" / "study.log").exists() == queue_is_safe


@pytest.mark.slow
def test_a_killed_workers_trial_is_tried_again(tmp_path):
    command = [sys.executable, "-m", "sb3_flowrl.zoo.command", "tune", "--timesteps", "1500", "--learning-starts", "500"]
    command += ["--trials", "3", "--evaluations", "1", "--folder", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    killed = None
    deadline = time.time() + 300
    while killed is None and time.time() < deadline:
        time.sleep(0.2)
        if not (tmp_path / "study.log").exists():
            continue
        try:
            trials = load_study(tmp_path, "study.log").trials
        except Exception:  # the study is being created
            continue
        for trial in trials:
            if trial.state == TrialState.RUNNING and "batch_size" in trial.user_attrs:  # its parameters are all sampled
                killed = trial
                os.kill(int(trial.user_attrs["worker"].rpartition(":")[2]), signal.SIGKILL)
                break
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and killed is not None
    assert f"trial {killed.number} died with its worker; its parameters are queued again" in output

    trials = load_study(tmp_path, "study.log").trials
    (failed,) = (trial for trial in trials if trial.state == TrialState.FAIL)
    assert failed.number == killed.number
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(finished) == 3 and len(trials) == 4
    assert [trial.params for trial in finished].count(failed.params) == 1
