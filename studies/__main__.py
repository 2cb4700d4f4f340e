"""
Run studies and report on them.

Examples::

    python -m studies run smoke            # skips finished runs, resumes interrupted ones
    python -m studies report smoke         # makes tables, figures and pages from the finished runs' files alone
    python -m studies cost paper           # estimates processor hours from measured updates a second
    python -m studies agents               # plays the published agents again, for their cards and animations

A study is a file, or the name of one in studies/definitions.
"""

import argparse
import sys
from pathlib import Path

from .records import RESULTS, WORK, Folders, write_atomically
from .study import StudyError, find_study, load_study


def run(args: argparse.Namespace) -> bool:
    """Do a study's runs, and return whether all are finished."""
    from .runner import Resources, check_no_run_is_lost, find_missing, run_study

    path = find_study(args.study)
    study, folders = load_study(path), Folders(args.results.resolve(), args.work.resolve())
    find_missing(study, folders)  # fails before the kept definition is overwritten if the results belong to other runs
    check_no_run_is_lost(study, folders)
    write_atomically(folders.study(study.name), path.read_text(encoding="utf-8"))
    resources = Resources(args.address, args.cpus, args.cpus_per_run, args.gpus_per_run, args.retries)
    return run_study(study, folders, resources, args.only)


def report(args: argparse.Namespace) -> bool:
    """Write the reports of studies from their runs' files and the definitions kept beside them."""
    from .report import write_report

    folders = Folders(args.results)
    names = args.studies or sorted(path.name for path in args.results.glob("*") if folders.study(path.name).is_file())
    if not names:
        raise StudyError(f"There are no studies' results in {args.results}. Make some: python -m studies run smoke")
    problems = []
    for name in names:
        own = folders.study(Path(name).stem)  # the definition that the runs were made with
        try:
            for page in write_report(load_study(own if own.is_file() else find_study(name)), folders):
                print(page)
        except StudyError as error:  # the other reports are still made
            problems.append(str(error))
    if problems:
        raise StudyError("\n".join(problems))
    return True


def cost(args: argparse.Namespace) -> bool:
    """Print the computing time that a study needs."""
    from .cost import describe_cost

    print(describe_cost(load_study(find_study(args.study)), dict(args.rate)))
    return True


def agents(args: argparse.Namespace) -> bool:
    """Publish agents: their files, cards, animations and page."""
    from .agents import publish

    publish(args.add, args.episodes)
    return True


def _rate(text: str) -> tuple[str, float]:
    label, _, number = text.partition("=")
    try:
        rate = float(number)
    except ValueError:
        rate = 0.0
    if not label or rate <= 0:
        raise argparse.ArgumentTypeError(f"must be like sac=13.1, with updates a second above 0, but is {text!r}")
    return label, rate


def main() -> None:
    """Run the command given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    running = commands.add_parser("run", help="do all runs of a study that are not finished")
    running.set_defaults(action=run)
    running.add_argument("--address", default="", help="address of a Ray cluster, or 'auto'; default: this machine alone")
    running.add_argument("--cpus", type=int, help="cores to use on this machine (default: all)")
    running.add_argument("--cpus-per-run", type=float, default=1.0, help="cores that a run reserves (%(default)s)")
    running.add_argument("--gpus-per-run", type=float, default=0.0, help="share of a GPU that a run gets (%(default)s)")
    running.add_argument("--retries", type=int, default=3, help="restarts of a run whose worker died (%(default)s)")
    running.add_argument(
        "--only", action="append", default=[], metavar="LABEL", help="an algorithm, or runs by name; default: all"
    )
    running.add_argument("--work", type=Path, default=WORK, help="folder for the checkpoints of unfinished runs (%(default)s)")

    reporting = commands.add_parser("report", help="write tables, figures and pages from the runs' files")
    reporting.set_defaults(action=report)

    costing = commands.add_parser("cost", help="estimate the computing time of a study")
    costing.set_defaults(action=cost)
    costing.add_argument("study")
    costing.add_argument("--rate", type=_rate, action="append", default=[], help="updates a second, such as sac=13.1")

    publishing = commands.add_parser("agents", help="play the published agents again, and write their cards and animations")
    publishing.set_defaults(action=agents)
    publishing.add_argument(
        "--add", type=Path, nargs=2, action="append", default=[], metavar=("RECORD", "POLICY"), help="first add a run's agent"
    )
    publishing.add_argument("--episodes", type=int, default=20, help="episodes in each mode (%(default)s)")

    running.add_argument("study")
    reporting.add_argument("studies", nargs="*", metavar="study", help="(default: all that have results)")
    for command in (running, reporting):
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of all studies' results (%(default)s)")
    args = parser.parse_args()
    try:
        succeeded = args.action(args)
    except StudyError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to resume")
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
