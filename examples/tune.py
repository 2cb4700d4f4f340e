"""
Tune FlowRL with rl_zoo3 and Optuna in several processes on one study, and plot what came out.

    python examples/tune.py --env Pendulum-v1 --timesteps 15000 --trials 40 --workers 2

Each worker is rl_zoo3's own command (``python -m rl_zoo3.train --algo flowrl -optimize``). This script starts them, and
where one dies, marks its trial as failed, queues the parameters again, and starts another worker. So a study ends
with all its trials, and one that was interrupted goes on when the command is given again. The first trial of a new study is
FlowRL at its defaults, so that it shows what the search has gained.

Arguments that this script does not know go to rl_zoo3 as they are (``--eval-episodes 10``), and ``--params`` are FlowRL's
for all trials, such as ``--params "precision:'bfloat16'" compile:True``.

The storage may be Optuna's journal (``runs/tune/study.log``, the default), SQLite (``sqlite:///runs/tune/study.db``), or a
database server's address, with which the same command runs on many machines at once (see docs/rl_zoo3.md).
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
    """:return: Optuna's storage for a name as rl_zoo3 takes it: a journal file that ends in .log, or a database's address"""
    if not storage.endswith(".log"):
        return get_storage(storage)
    return JournalStorage(JournalFileBackend(storage))


class Tuner:
    """
    Runs workers until a study has all its trials.

    :param study: the study
    :param command: the worker's command
    :param n_trials: trials that the study shall have finished
    :param n_workers: workers at a time on this machine
    :param max_retries: how often the same parameters are tried when workers die of them
    :param queue_is_safe: False if two workers may take the same queued trial, as SQLite lets them, which knows no lock on a
        row (https://github.com/optuna/optuna/issues/4621). Then no two workers start while a trial is queued
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
        self.workers: list[subprocess.Popen] = []
        self.ended: set[str] = set()
        self.retries: collections.Counter = collections.Counter()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def run(self) -> None:
        """
        :raises RuntimeError: if a worker dies without having begun a trial, which another would do as well
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
        """:return: whether a new worker can't meet another one at a queued trial, of those that must not meet there"""
        if self.queue_is_safe or not self.trials(TrialState.WAITING):
            return True
        busy = {trial.user_attrs.get("worker") for trial in self.trials(TrialState.RUNNING)}
        return all(worker_name(worker.pid) in busy for worker in self.workers)

    def reap(self) -> None:
        """Look after the workers that ended."""
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
        """:return: whether a running trial was left behind by a worker that is no more"""
        if "worker" not in trial.user_attrs:  # it is set at once
            return trial.datetime_start is not None and (datetime.now() - trial.datetime_start).total_seconds() > 60
        name = trial.user_attrs["worker"]
        machine, _, pid = name.rpartition(":")
        processes = Path("/proc")  # where there is none, nothing can be said of the workers of another run of this script
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
    :param pruner: rl_zoo3's name of a pruner
    :param timesteps: environment steps of a trial
    :param evaluations: evaluations of a trial
    :return: the environment step from which the pruner may end a trial. Source: rl_zoo3's ``exp_manager.py``,
        ``_create_pruner``: the median waits for a third of the evaluations, halving for none
    """
    if pruner == "none":
        return timesteps
    return max(1, evaluations // 3 if pruner == "median" else 1) * (timesteps // evaluations)


def plot(study: optuna.Study, folder: Path) -> None:
    """
    Write the optimisation's history and the parameters' importance to ``history.png`` and ``importance.png``.

    :param study: a study with at least two completed trials
    :param folder: where the pictures go
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--params", nargs="+", default=[], help="FlowRL's arguments for all trials, as rl_zoo3 takes them")
    args, for_rl_zoo3 = parser.parse_known_args()
    if args.learning_starts >= args.timesteps:
        parser.error(f"--learning-starts {args.learning_starts} leaves nothing of --timesteps {args.timesteps} to learn in")
    if not 1 <= args.evaluations <= args.timesteps:
        parser.error(f"--evaluations {args.evaluations} is not between 1 and --timesteps {args.timesteps}")
    step = first_pruning(args.pruner, args.timesteps, args.evaluations)
    if step <= args.learning_starts:
        more = range(args.evaluations + 1, 31)
        enough = [n for n in more if first_pruning(args.pruner, args.timesteps, n) > args.learning_starts]
        advice = f"--evaluations {enough[0]} or --pruner none" if enough else "--pruner none"
        parser.error(
            f"--pruner {args.pruner} may end trials after {step} steps by what they did before they learned, which begins "
            f"after --learning-starts {args.learning_starts}: ask for {advice}"
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
