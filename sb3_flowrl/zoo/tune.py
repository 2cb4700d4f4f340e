"""
Tune FlowRL with rl_zoo3 and Optuna in several processes on one study, and plot the result.

    sb3-flowrl tune --env Pendulum-v1 --timesteps 15000 --trials 40 --workers 2

Each worker is rl_zoo3's own command (``python -m rl_zoo3.train --algo flowrl -optimize``). This command starts the workers.
If one dies, it marks its trial as failed, queues the parameters again, and starts another worker. A study therefore
ends with all its trials. Run the same command again to continue an interrupted study. The first trial of a new study uses
FlowRL's defaults, to show what the search gains.

Arguments unknown to this command are passed on to rl_zoo3 (``--eval-episodes 10``). ``--params`` sets arguments of FlowRL for
all trials, such as ``--params "precision:'bfloat16'" compile:True``.

The storage may be Optuna's journal (``runs/tune/study.log``, the default), SQLite (``sqlite:///runs/tune/study.db``), or the
address of a database server. With a server, the same command runs on many machines at once (see docs/rl_zoo3.md).
"""

import argparse
import collections
import platform
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sb3_flowrl.zoo.search_space import DEFAULT_TRIAL, worker_name

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_storage(storage: str) -> BaseStorage:
    """
    Open Optuna's storage.

    :param storage: its name as in rl_zoo3: a journal file that ends in .log, or the address of a database
    :return: the storage
    """
    if not storage.endswith(".log"):
        return get_storage(storage)
    return JournalStorage(JournalFileBackend(storage))


class Tuner:
    """
    Runs workers until a study has all its trials.

    :param study: the study
    :param command: the worker's command
    :param n_trials: number of finished trials to reach
    :param n_workers: number of workers at a time on this machine
    :param max_retries: how often the same parameters are tried again after workers died with them
    :param queue_is_safe: False if two workers may take the same queued trial. SQLite allows this, because it can't lock a row
        (https://github.com/optuna/optuna/issues/4621). While a trial is queued, workers then start one by one
    """

    def __init__(
        self,
        study: optuna.Study,
        command: list[str],
        n_trials: int,
        n_workers: int,
        max_retries: int = 2,
        queue_is_safe: bool = True,
    ):
        self.study, self.command, self.n_trials, self.n_workers = study, command, n_trials, n_workers
        self.max_retries, self.queue_is_safe = max_retries, queue_is_safe
        self.workers: list[subprocess.Popen[bytes]] = []
        self.ended: set[str] = set()
        self.retries: collections.Counter[str] = collections.Counter()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """List the study's trials in these states, or all trials."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def run(self) -> None:
        """
        Run workers until all trials are finished.

        :raises RuntimeError: if a worker dies before its first trial, because another worker would die as well
        """
        try:
            while self.workers or len(self.trials(*FINISHED)) < self.n_trials:
                self.reap()
                self.bury([trial for trial in self.trials(TrialState.RUNNING) if self.is_orphan(trial)])
                missing = self.n_trials - len(self.trials(*FINISHED, TrialState.RUNNING))
                for _ in range(min(missing, self.n_workers - len(self.workers))):
                    if self.may_start():
                        self.workers.append(subprocess.Popen(self.command))
                time.sleep(0.5)
        finally:
            for worker in self.workers:
                worker.terminate()

    def may_start(self) -> bool:
        """Check that a new worker can't take the same queued trial as another worker."""
        if self.queue_is_safe or not self.trials(TrialState.WAITING):
            return True
        busy = {trial.user_attrs.get("worker") for trial in self.trials(TrialState.RUNNING)}
        return all(worker_name(worker.pid) in busy for worker in self.workers)

    def reap(self) -> None:
        """Remove the workers that have ended, and report those that failed."""
        for worker in [worker for worker in self.workers if worker.poll() is not None]:
            self.workers.remove(worker)
            name = worker_name(worker.pid)
            self.ended.add(name)
            if worker.returncode == 0:
                continue
            print(f"worker {name} ended with {worker.returncode}")
            if not any(trial.user_attrs.get("worker") == name for trial in self.trials()):
                raise RuntimeError(f"A worker ended with {worker.returncode} before its first trial: {' '.join(self.command)}")

    def is_orphan(self, trial: FrozenTrial) -> bool:
        """Check whether the worker of a running trial no longer exists."""
        if "worker" not in trial.user_attrs:  # a worker sets it at once
            return trial.datetime_start is not None and (datetime.now() - trial.datetime_start).total_seconds() > 60
        name = trial.user_attrs["worker"]
        machine, _, pid = name.rpartition(":")
        processes = Path("/proc")  # without it, workers of another run of this command count as alive
        gone = machine == platform.node() and processes.is_dir() and not (processes / pid).exists()
        return name in self.ended or gone

    def bury(self, trials: list[FrozenTrial]) -> None:
        """Mark trials as failed, and queue their parameters again."""
        for trial in trials:
            self.study.tell(trial.number, state=TrialState.FAIL)
            key = repr(sorted(trial.params.items()))
            self.retries[key] += 1
            again = self.retries[key] <= self.max_retries
            if again:
                self.study.enqueue_trial(trial.params)
            print(f"trial {trial.number} died with its worker; its parameters are {'queued again' if again else 'given up'}")


def first_pruning(pruner: str, timesteps: int, evaluations: int) -> int:
    """
    Compute the environment step from which a pruner may end a trial.

    Source: rl_zoo3's ``exp_manager.py``, ``_create_pruner``. The median pruner waits for a third of the evaluations; halving
    does not wait.

    :param pruner: rl_zoo3's name of a pruner
    :param timesteps: environment steps of a trial
    :param evaluations: evaluations of a trial
    :return: the environment step
    """
    if pruner == "none":
        return timesteps
    return max(1, evaluations // 3 if pruner == "median" else 1) * (timesteps // evaluations)


def plot(study: optuna.Study, folder: Path) -> None:
    """
    Plot the optimization history and the parameters' importance to ``history.png`` and ``importance.png``.

    :param study: a study with at least two completed trials
    :param folder: the folder for the pictures
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    for name, draw in (
        ("history", lambda: plots.plot_optimization_history(study)),
        ("importance", lambda: plots.plot_param_importances(study, evaluator=evaluator)),
    ):
        draw()
        figure = plt.gcf()
        figure.set_size_inches(9, 5)
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        print(f"Picture: {folder / name}.png")


def main() -> None:
    """Run the command."""
    help_formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("sb3-flowrl tune", description=__doc__, formatter_class=help_formatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--timesteps", type=int, default=15_000, help="environment steps of a trial")
    parser.add_argument("--learning-starts", type=int, default=1_000, help="random first steps of a trial")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--evaluations", type=int, default=5, help="evaluations of a trial, at which it may be pruned")
    parser.add_argument("--pruner", choices=["median", "halving", "none"], default="median")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "tune")
    parser.add_argument("--storage", help="default: Optuna's journal study.log in the folder")
    parser.add_argument("--study-name", default="flowrl")
    parser.add_argument("--params", nargs="+", default=[], help="arguments of FlowRL for all trials, in rl_zoo3's form")
    args, for_rl_zoo3 = parser.parse_known_args()
    if args.learning_starts >= args.timesteps:
        parser.error(f"--learning-starts {args.learning_starts} leaves nothing of --timesteps {args.timesteps} for learning")
    if not 1 <= args.evaluations <= args.timesteps:
        parser.error(f"--evaluations {args.evaluations} is not between 1 and --timesteps {args.timesteps}")
    step = first_pruning(args.pruner, args.timesteps, args.evaluations)
    if step <= args.learning_starts:
        more = range(args.evaluations + 1, 31)
        enough = [n for n in more if first_pruning(args.pruner, args.timesteps, n) > args.learning_starts]
        advice = f"--evaluations {enough[0]} or --pruner none" if enough else "--pruner none"
        parser.error(
            f"--pruner {args.pruner} may end trials after {step} steps, but learning only begins after --learning-starts "
            f"{args.learning_starts}: use {advice}"
        )

    args.folder.mkdir(parents=True, exist_ok=True)
    storage = args.storage or str(args.folder / "study.log")
    study = optuna.create_study(
        storage=open_storage(storage), study_name=args.study_name, direction="maximize", load_if_exists=True
    )
    if not study.trials:
        study.enqueue_trial(DEFAULT_TRIAL, skip_if_exists=True)
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "flowrl", "--env", args.env, "-n", str(args.timesteps)]
    command += ["-params", f"learning_starts:{args.learning_starts}", *args.params, "-optimize", "--storage", storage]
    command += ["--study-name", args.study_name, "--max-total-trials", str(args.trials), "--no-optim-plots"]
    command += ["--n-evaluations", str(args.evaluations), "--num-threads", "1", "-f", str(args.folder / "logs")]
    command += ["--pruner", args.pruner, *for_rl_zoo3]
    Tuner(study, command, args.trials, args.workers, queue_is_safe=not storage.startswith("sqlite")).run()

    states = collections.Counter(trial.state.name for trial in study.trials)
    print(f"trials: {dict(states)}")
    if states["COMPLETE"] > 1:
        print(f"best: trial {study.best_trial.number}, {study.best_value:.1f}, {study.best_params}")
        plot(study, args.folder)


if __name__ == "__main__":
    main()
