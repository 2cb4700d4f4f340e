"""Runs of a study: what training and evaluation leave behind, and that neither a kill nor a failure loses anything."""

import contextlib
import inspect
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from rl_zoo3.utils import ALGOS as CLASSES
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_flowrl import FlowRL
from studies import run as run_module
from studies import runner
from studies.arguments import as_plain_data
from studies.evaluation import FIRST_EVALUATION_SEED
from studies.records import Folders, without_folders, write_atomically
from studies.run import best_policy_of, execute
from studies.runner import Resources, find_missing, run_study
from studies.study import Run, Study, StudyError
from tests.marks import slow_except
from tests.studies.made_up import finish, make_study

ALGOS = slow_except(["flowrl", "sac", "td3"], ["flowrl", "sac", "td3", "tqc"])
ONE_CORE = Resources(cpus=1)


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setattr(run_module, "CHECKPOINT_EVERY", 200)  # Pendulum's episodes are as long
    monkeypatch.setenv("PYTHONPATH", str(Path(run_module.__file__).parent.parent))  # for Ray's workers


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path / "results", tmp_path / "work")


def make_run(folder: Path, algo: str, **changes) -> Run:
    [run] = make_study(folder, algorithms={algo: None}, baselines=[algo], **changes).runs()
    return run


def interrupt_at(step: int, monkeypatch) -> None:
    def note_progress(scratch: Path):
        def tell(now: int) -> None:
            if now == step:
                raise Interrupted

        return tell

    monkeypatch.setattr(run_module, "note_progress", note_progress)


def interrupt(run, folder, monkeypatch) -> None:
    """Execute a run until step 450, after the evaluation and the checkpoint of step 400."""
    with monkeypatch.context() as patch:
        interrupt_at(450, patch)
        with pytest.raises(Interrupted):
            execute(run, folder)


def learned(record: dict) -> list:
    return [{key: value for key, value in point.items() if key != "seconds"} for point in record["evaluations"]]


@pytest.mark.parametrize("algo", ALGOS)
def test_interrupted_run_ends_as_if_it_had_not_been(algo, tmp_path, monkeypatch):
    run = make_run(tmp_path, algo)
    whole = execute(run, tmp_path / "whole")
    interrupt(run, tmp_path / "interrupted", monkeypatch)
    resumed = execute(run, tmp_path / "interrupted")
    assert (whole["resumed_at"], resumed["resumed_at"]) == ([], [400])
    assert learned(resumed) == learned(whole) and resumed["random_returns"] == whole["random_returns"]
    assert [point["step"] for point in whole["evaluations"]] == [200, 400, 600]
    assert resumed["n_updates"] == whole["n_updates"] > 50


def test_the_policy_of_the_best_evaluation_is_kept(tmp_path):
    run = make_run(tmp_path, "flowrl")
    record = execute(run, tmp_path / "run")
    best = max(record["evaluations"], key=lambda point: np.mean(point["deterministic"]))
    policy = FlowRL.load_policy_safe(best_policy_of(tmp_path / "run"))
    env = make_vec_env("Pendulum-v1", n_envs=run.evaluation.episodes)
    env.seed(FIRST_EVALUATION_SEED + 1_000 * run.seed)
    returns, _ = evaluate_policy(policy, env, run.evaluation.episodes, return_episode_rewards=True)
    np.testing.assert_allclose(returns, best["deterministic"], atol=0.01)


def test_checkpoints_leave_no_trace_in_flowrl(tmp_path, monkeypatch):
    run = make_run(tmp_path, "flowrl")
    with_checkpoints = execute(run, tmp_path / "with")
    monkeypatch.setattr(run_module, "CHECKPOINT_EVERY", 10_000)
    assert learned(execute(run, tmp_path / "without")) == learned(with_checkpoints)


@pytest.mark.filterwarnings("ignore:No bias of Q")  # Pendulum's episodes are too short for it
@pytest.mark.parametrize("algo", slow_except(["flowrl"], ["flowrl", "sac"]))
def test_instruments_measure_and_change_nothing(algo, tmp_path, monkeypatch):
    plain = execute(make_run(tmp_path, algo), tmp_path / "plain")
    run = make_run(tmp_path, algo, diagnose=True)
    assert run.specification() == make_run(tmp_path, algo).specification()
    whole = execute(run, tmp_path / "whole")
    assert learned(whole) == learned(plain) and plain["diagnostics"] == []
    assert [point["step"] for point in whole["diagnostics"]] == [104, 200, 400, 600]  # every 200, and when learning begins
    assert all(0 < point["action_spread"] < 1 for point in whole["diagnostics"])
    assert all(("gradient_cosine" in point) == (algo == "flowrl") for point in whole["diagnostics"])

    interrupt(run, tmp_path / "interrupted", monkeypatch)
    assert execute(run, tmp_path / "interrupted")["diagnostics"] == whole["diagnostics"]


def test_evaluation_leaves_no_trace_in_training(tmp_path):
    often = execute(make_run(tmp_path, "sac"), tmp_path / "often")
    rarely = execute(make_run(tmp_path, "sac", evaluation=dict(every=600, episodes=3)), tmp_path / "rarely")
    assert learned(often)[-1] == learned(rarely)[-1]


def test_record_says_how_the_run_was_made(tmp_path):
    record = execute(make_run(tmp_path, "td3"), tmp_path / "run", command="typed")
    assert record["run"]["seed"] == 0 and record["command"] == "typed" and record["threads"] == 1
    # rl_zoo3's for Pendulum-v1, and over them the study's
    assert record["hyperparameters"]["noise_type"] == "normal" and record["hyperparameters"]["train_freq"] == 8
    # and under them the constructors'
    assert record["defaults"]["tau"] == 0.005 and record["defaults"]["policy_kwargs.activation_fn"].endswith("ReLU'>")
    assert record["processor"] and len(record["commits"]) == 1 and record["versions"]["torch"] and record["finished"]
    assert record["seconds"] > 0 and record["cpu_seconds"] > 0
    assert all(point.keys() == {"step", "seconds", "deterministic"} for point in record["evaluations"])
    assert all(len(point["deterministic"]) == 3 for point in record["evaluations"]) and len(record["random_returns"]) == 3
    json.dumps(record)


def test_checkpoints_of_other_hyperparameters_are_not_gone_on_from(tmp_path, monkeypatch):
    interrupt(make_run(tmp_path, "td3"), tmp_path / "run", monkeypatch)
    changed = make_run(tmp_path, "td3", hyperparameters=dict(learning_starts=500))
    record = execute(changed, tmp_path / "run")
    assert record["resumed_at"] == [] and record["hyperparameters"]["learning_starts"] == 500


def test_environments_that_step_past_the_evaluations_are_refused(tmp_path):
    run = make_run(tmp_path, "sac", hyperparameters=dict(n_envs=3))
    with pytest.raises(ValueError, match="The 3 environments that train together step past the evaluations, every 200 steps"):
        execute(run, tmp_path / "run")


def test_only_off_policy_algorithms_can_be_studied(tmp_path):
    run = make_run(tmp_path, "ppo", hyperparameters={})
    with pytest.raises(ValueError, match="'ppo' is not an off-policy algorithm"):
        execute(run, tmp_path / "run")


def test_class_of_the_replay_buffer_is_named_by_its_path(tmp_path):
    run = make_run(tmp_path, "flowrl", hyperparameters=dict(replay_buffer_class="sb3_flowrl.RecencyReplayBuffer"))
    _, model, resolved = run_module.set_up(run, tmp_path / "run", "cpu")
    assert type(model.replay_buffer).__name__ == "RecencyReplayBuffer"
    assert "RecencyReplayBuffer" in as_plain_data(resolved)["replay_buffer_class"]


def replace_ray(monkeypatch, do: Callable[..., str], note: Callable[..., None] = lambda **options: None) -> None:
    """Runs go to ``do``, one after the other in this process, and what Ray would have been asked for to ``note``."""

    class Task:
        remote = staticmethod(do)

    def remote(**options):
        note(**options)
        return lambda function: Task

    monkeypatch.setattr(runner.ray, "init", lambda **kwargs: None)
    monkeypatch.setattr(runner.ray, "remote", remote)
    monkeypatch.setattr(runner.ray, "wait", lambda references, **kwargs: (references, []))


def test_run_of_another_process_is_left_to_it(tmp_path, folders, monkeypatch, capsys):
    study = make_study(tmp_path, algorithms=dict(sac=None))
    [run] = study.runs()
    replace_ray(monkeypatch, runner.do_run)
    monkeypatch.setattr(runner.ray, "get", lambda reference: reference)
    monkeypatch.setattr(runner, "LOCK_SECONDS", 0.1)
    with FileLock(folders.scratch(study.name, run) / "lock"):
        assert not run_study(study, folders, ONE_CORE)
    printed = capsys.readouterr().out
    assert "Pendulum-v1_sac_seed0 is left to another process" in printed and "0 failed, 1 left to other processes" in printed
    assert not folders.failure(study.name, run).exists() and not folders.record(study.name, run).exists()


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What Ray would have been asked for: it does nothing."""
    asked: dict = dict(runs=[])

    def note_run(study, run, folders, device, command):
        asked["device"] = device
        asked["runs"].append(run.name)
        return run.name

    replace_ray(monkeypatch, note_run, asked.update)
    monkeypatch.setattr(runner.ray, "get", lambda reference: "")
    return asked


def test_share_of_a_gpu_is_asked_of_ray_and_used(tmp_path, folders, asked):
    assert run_study(make_study(tmp_path), folders, Resources(gpus_per_run=0.25))
    assert (asked["num_gpus"], asked["device"]) == (0.25, "cuda")
    assert run_study(make_study(tmp_path), folders, Resources())
    assert (asked["num_gpus"], asked["device"]) == (0.0, "cpu")


def test_other_runs_are_left_for_another_time(tmp_path, folders, asked, capsys):
    study = make_study(tmp_path, algorithms=dict(sac=None, td3=None, flowrl=None))
    assert run_study(study, folders, ONE_CORE, only=["td3", "flowrl"])
    assert asked["runs"] == [run.name for run in study.runs() if run.label != "sac"]
    assert f"{len(study.runs())} runs, of which 0 are finished already" in capsys.readouterr().out
    asked["runs"].clear()
    assert run_study(study, folders, ONE_CORE, only=["*_td3_*", "Pendulum-v1_sac_seed0"])
    assert sorted(asked["runs"]) == ["Pendulum-v1_sac_seed0", "Pendulum-v1_td3_seed0"]
    with pytest.raises(StudyError, match=r"no algorithm or run ddpg, \*_seed7\. .* sac, td3, flowrl;.*like Pendulum-v1"):
        run_study(study, folders, ONE_CORE, only=["sac", "ddpg", "*_seed7"])


@pytest.mark.slow
def test_runs_have_the_priority_of_the_command():
    runner._start_ray(Resources(cpus=1))
    try:
        assert runner.ray.get(runner.ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    finally:
        runner.ray.shutdown()


def test_the_end_of_ray_is_no_failure_of_a_run(tmp_path, folders, monkeypatch):
    study = make_study(tmp_path)

    def get(reference):
        raise runner.ray.exceptions.LocalRayletDiedError

    monkeypatch.setattr(runner.ray, "get", get)
    with pytest.raises(StudyError, match="No run has failed: the same command goes on where it was"):
        runner._outcome(None, study, study.runs()[0], folders)
    assert not folders.failure(study.name, study.runs()[0]).exists()


def test_runs_of_other_defaults_are_not_added_to(tmp_path, folders, monkeypatch):
    study = make_study(tmp_path)
    flowrl, sac = study.runs()
    finish(study, flowrl, folders, final=1.0)
    assert find_missing(study, folders) == [sac]
    before = folders.record(study.name, flowrl).read_text()
    record = json.loads(before)
    del record["defaults"]["spread_coef"]  # as before there was the argument
    write_atomically(folders.record(study.name, flowrl), json.dumps(record))
    with pytest.raises(StudyError, match=r"spread_coef was 0.0 and is 'auto'"):
        find_missing(study, folders)
    constructor = inspect.unwrap(CLASSES["flowrl"].__init__)
    with monkeypatch.context() as patch:
        patch.setattr(constructor, "__defaults__", changed_default(CLASSES["flowrl"], spread_coef=0.0))
        assert find_missing(study, folders) == [sac]
    write_atomically(folders.record(study.name, flowrl), before)
    monkeypatch.setattr(constructor, "__defaults__", changed_default(CLASSES["flowrl"], tau=0.005))
    with pytest.raises(StudyError, match=r"flowrl_seed0.json is of another run .* tau was 0.95 and is 0.005"):
        find_missing(study, folders)
    including = make_study(tmp_path, "including", includes=[study.name])
    assert find_missing(including, folders) == including.runs()  # so it makes one of its own


def test_checkpoints_of_other_defaults_are_not_gone_on_from(tmp_path, monkeypatch):
    run = make_run(tmp_path, "td3")
    interrupt(run, tmp_path / "run", monkeypatch)
    monkeypatch.setattr(CLASSES["td3"].__init__, "__defaults__", changed_default(CLASSES["td3"], policy_delay=3))
    record = execute(run, tmp_path / "run")
    assert record["resumed_at"] == [] and record["defaults"]["policy_delay"] == 3


def test_checkpoints_of_before_an_argument_existed_are_gone_on_from(tmp_path, monkeypatch):
    run = make_run(tmp_path, "flowrl")
    interrupt(run, tmp_path / "run", monkeypatch)
    note = tmp_path / "run" / run_module.SPECIFICATION
    before = json.loads(note.read_text())
    del before["defaults"]["target_spread"]
    note.write_text(json.dumps(before))
    assert execute(run, tmp_path / "run")["resumed_at"] == [400]


def changed_default(algorithm: type, **changes) -> tuple:
    """The defaults of a constructor, with one changed."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(algorithm).parameters.items()
        if parameter.default is not parameter.empty
    }
    return tuple({**defaults, **changes}.values())


@pytest.mark.slow
def test_failure_is_written_down_and_stops_no_other_run(tmp_path, folders, capsys):
    algorithms = {"broken": dict(algo="sac", hyperparameters=dict(no_such_argument=1)), "sac": None, "td3": None}
    study = make_study(tmp_path, algorithms=algorithms, steps=400)
    broken, sac, td3 = study.runs()
    finish(study, td3, folders, final=-5.0)
    before = folders.record(study.name, td3).read_bytes()
    assert not run_study(study, folders, ONE_CORE)
    assert "unexpected keyword argument 'no_such_argument'" in folders.failure(study.name, broken).read_text()
    assert not folders.record(study.name, broken).exists()
    assert len(json.loads(folders.record(study.name, sac).read_text())["evaluations"]) == 2
    assert folders.record(study.name, td3).read_bytes() == before  # it was finished, and is skipped
    assert not folders.scratch(study.name, sac).exists()
    printed = capsys.readouterr().out
    assert "3 runs, of which 1 are finished already" in printed and "2 runs finished, 1 failed" in printed


def test_what_a_worker_left_that_died_after_its_last_line_is_cleared_up(tmp_path, folders):
    study = make_study(tmp_path)
    run = study.runs()[0]
    finish(study, run, folders, final=1.0)
    scratch, failure = folders.scratch(study.name, run), folders.failure(study.name, run)
    for path in (scratch / "checkpoints" / "left", failure):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert runner.do_run(study.name, run, folders, "cpu", "a command") == ""
    assert not scratch.exists() and not failure.exists()


def test_finished_study_starts_nothing(tmp_path, folders, monkeypatch):
    study = make_study(tmp_path)
    for run in study.runs():
        finish(study, run, folders, final=1.0)
    monkeypatch.setattr(runner, "_start_ray", lambda resources: pytest.fail("Ray was started"))
    assert run_study(study, folders, ONE_CORE)


def make_long_study(folder: Path) -> tuple[Study, Run]:
    """One run that takes long enough to be killed in."""
    study = make_study(
        folder,
        steps=40_000,
        evaluation=dict(every=5_000, episodes=3),
        algorithms=dict(sac=None),
        hyperparameters=dict(policy_kwargs="dict(net_arch=[16, 16])", learning_starts=100, train_freq=20, gradient_steps=1),
    )
    [run] = study.runs()
    return study, run


def worker_of(scratch: Path) -> int:
    return json.loads((scratch / run_module.PROGRESS).read_text())["pid"]


def test_cluster_that_cannot_be_reached_is_said_in_a_line(tmp_path, folders, monkeypatch):
    def refuse(**kwargs) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(runner.ray, "init", refuse)
    with pytest.raises(StudyError, match=r"no way to the Ray cluster at 'here:1' \(Failed to connect\)"):
        run_study(make_study(tmp_path), folders, Resources(address="here:1"))


def test_cluster_is_joined_only_if_it_is_asked_for(monkeypatch):
    arguments: list[dict] = []
    monkeypatch.setattr(runner.ray, "init", lambda **kwargs: arguments.append(kwargs))
    runner._start_ray(Resources(cpus=3))
    runner._start_ray(Resources(address="auto", cpus=3))
    here, there = arguments
    assert (here["address"], here["num_cpus"]) == ("local", 3)
    assert there["address"] == "auto" and "num_cpus" not in there


@pytest.mark.slow
def test_run_whose_worker_is_killed_goes_on_from_its_checkpoint(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(run_module, "CHECKPOINT_EVERY", 5_000)  # as in Ray's workers, where nothing is patched
    study, run = make_long_study(tmp_path)
    scratch = folders.scratch(study.name, run)

    def kill_after_first_checkpoint() -> None:
        while not list(scratch.glob("checkpoints/checkpoint-*")):
            time.sleep(0.02)
        os.kill(worker_of(scratch), signal.SIGKILL)

    killer = threading.Thread(target=kill_after_first_checkpoint)
    killer.start()
    assert run_study(study, folders, ONE_CORE)
    killer.join()
    record = json.loads(folders.record(study.name, run).read_text())
    assert len(record["resumed_at"]) == 1 and record["resumed_at"][0] >= 5_000
    assert learned(record) == learned(execute(run, tmp_path / "whole"))


@pytest.mark.slow
def test_run_whose_worker_always_dies_is_reported(tmp_path, folders):
    study, run = make_long_study(tmp_path)
    scratch = folders.scratch(study.name, run)
    ended = threading.Event()
    killed = set()

    def kill_every_worker() -> None:
        while not ended.wait(0.02):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                worker = worker_of(scratch)
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)

    killer = threading.Thread(target=kill_every_worker)
    killer.start()
    try:
        assert not run_study(study, folders, Resources(cpus=1, retries=1))
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 2 and "WorkerCrashedError" in folders.failure(study.name, run).read_text()


def test_commands_are_recorded_without_the_folders_of_a_machine():
    typed = ["run", "any", "--work", "/somewhere", "--cpus", "1", "--results=/else/where", "--only", "sac"]
    assert without_folders(typed) == ["run", "any", "--cpus", "1", "--only", "sac"]
