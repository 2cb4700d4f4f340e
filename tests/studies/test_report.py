"""The report of a study, from runs' files that are made up."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import trim_mean

from studies import estimates
from studies import figures as figures_module
from studies.__main__ import main
from studies.estimates import choose_block, compute, interval_of_mean
from studies.figures import MAX_SVG_BYTES
from studies.finished import collect
from studies.records import Folders, write_atomically
from studies.report import write_report
from studies.study import Study
from studies.zoo_plots import learning_curves
from tests.studies.made_up import finish, make_study, write_study

ROOT = Path(__file__).parents[2]
TASKS = ["Pendulum-v1", "MountainCarContinuous-v0"]
SEEDS = [0, 1, 2]
#: Final returns by task, algorithm and seed. Random actions get -100 everywhere.
FINALS = {
    "Pendulum-v1": {"flowrl": [0.0, 50.0, 100.0], "sac": [50.0, 100.0, 150.0], "td3": [0.0, 0.0, 0.0]},
    "MountainCarContinuous-v0": {"flowrl": [100.0, 300.0, 500.0], "sac": [0.0, 0.0, 0.0], "td3": [100.0, 100.0, 100.0]},
}
RANDOM = -100.0


@pytest.fixture(autouse=True)
def few_resamplings(monkeypatch):
    monkeypatch.setattr(estimates, "REPLICATIONS", 50)


@pytest.fixture
def drawn_figures():
    """For tests that look at what is drawn."""


@pytest.fixture(autouse=True)
def empty_figures(request, monkeypatch):
    """Elsewhere figures are empty files: to draw them takes half of the time that a report takes."""

    def save(figure, stem: Path) -> Path:
        path = stem.with_suffix(".svg")
        path.touch()
        return path

    if "drawn_figures" not in request.fixturenames:
        monkeypatch.setattr(figures_module, "_save", save)


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(tmp_path / "results", tmp_path / "work")


def make(tmp_path: Path, folders: Folders, without=(), **changes) -> Study:
    """A study of which all runs but some are finished."""
    algorithms: dict = dict(flowrl=None, sac=None, td3=None)
    study = make_study(tmp_path, environments=TASKS, seeds=SEEDS, algorithms=algorithms, baselines=["sac", "td3"], **changes)
    for run in study.runs():
        if run.name not in without:
            finish(study, run, folders, FINALS[run.env][run.label][run.seed], RANDOM)
    return study


def rewrite_evaluations(path: Path, means: list[float]) -> None:
    """Let a run's evaluations have these mean returns."""
    record = json.loads(path.read_text())
    for point, mean in zip(record["evaluations"], means, strict=True):
        point["deterministic"] = [mean - 1, mean, mean + 1]
    write_atomically(path, json.dumps(record))


def pages(study: Study, folders: Folders) -> tuple[str, str]:
    markdown, html = write_report(study, folders)
    return markdown.read_text(), html.read_text()


def test_numbers_are_those_of_the_runs(tmp_path, folders):
    study = make(tmp_path, folders)
    markdown, _ = pages(study, folders)
    assert "**18 of 18 runs are finished.**" in markdown and "Not finished" not in markdown
    assert "The policies of td3 draw no actions." in markdown
    assert "Coverage of equally good ways" not in markdown  # of which these tasks tell nothing
    # Best baselines: SAC with 100 on Pendulum, TD3 with 100 on MountainCar. So a score is (return + 100) / 200.
    task = next(line for line in markdown.splitlines() if line.startswith("| Pendulum-v1 | flowrl | 50.0 |"))
    assert "| 0.75 | 0.50 |" in task
    for seed, final in zip(SEEDS, ["0.0", "50.0", "100"], strict=True):
        assert f"{seed}: [{final}](runs/Pendulum-v1_flowrl_seed{seed}.json)" in task
    assert "| MountainCarContinuous-v0 | -100 | td3 | 100 |" in markdown
    scores = [(final + 100) / 200 for of_task in FINALS.values() for final in of_task["flowrl"]]
    aggregates = next(line for line in markdown.splitlines() if re.match(r"\| flowrl \| [\d.]+ \(", line))
    iqm, mean, median = re.findall(r"\| ([\d.]+) \(", aggregates)
    assert float(iqm) == pytest.approx(trim_mean(scores, 0.25), abs=0.005)
    assert float(mean) == pytest.approx(sum(scores) / 6, abs=0.005) and float(median) == pytest.approx(1.375, abs=0.005)
    # On Pendulum FlowRL beats SAC in 2 of 9 pairs and ties in 2, on MountainCar in all
    assert f"| flowrl > sac | {((1 + 2 * 0.5) / 9 + 1) / 2:.2f} (" in markdown


def test_intervals_hold_the_estimate_and_have_a_width(tmp_path, folders):
    statistics = compute(collect(make(tmp_path, folders), folders))
    for label in ("flowrl", "sac"):
        value, low, high = statistics.aggregates[label][0]
        assert low <= value <= high and high - low > 0.05
    value, low, high = statistics.aggregates["td3"][1]
    assert value == low == high == pytest.approx(0.75)  # all its runs are alike
    assert statistics.efficiency["flowrl"].value.tolist() == sorted(statistics.efficiency["flowrl"].value)


def test_interval_is_the_middle_95_percent_of_resampled_means(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "REPLICATIONS", 20_000)
    low, high = interval_of_mean([0.0, 0.0, 0.0, 100.0])
    # The mean of four draws, each 100 with probability 1/4, is 75 or more with probability 13/256 and 100 with 1/256
    assert (low, high) == (0.0, 75.0)


def test_the_end_is_the_last_evaluation_and_the_mean_is_over_seeds(tmp_path, folders):
    study = make(tmp_path, folders)
    runs = [run for run in study.runs() if (run.env, run.label) == ("Pendulum-v1", "flowrl")]
    for run, means in zip(runs, [[700.0, 900.0, 30.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], strict=True):
        rewrite_evaluations(folders.record(study.name, run), means)
    results = collect(study, folders)
    assert results.mean_final("Pendulum-v1", "flowrl") == pytest.approx(10.0)
    assert replace(results, last=2).mean_final("Pendulum-v1", "flowrl") == pytest.approx((900 + 30) / 2 / 3)
    assert results.of("Pendulum-v1", "flowrl")[0].swing(2) == pytest.approx((900 - 30) / 2)
    assert "| Pendulum-v1 | flowrl | 10.0 | 0.0 to 30.0 |" in pages(study, folders)[0]


def test_a_single_run_with_one_episode_in_each_evaluation_is_drawn(tmp_path, folders):
    study = make_study(tmp_path, evaluation=dict(every=200, episodes=1))
    for run in study.runs():
        finish(study, run, folders, final=6.0)
    curves = learning_curves(collect(study, folders))
    assert [list(curves["Pendulum-v1", label]["mean"]) for label in ("flowrl", "sac")] == [[2.0, 4.0, 6.0]] * 2


def test_last_evaluations_together_have_a_table_and_a_scale_of_their_own(tmp_path, folders):
    study = make(tmp_path, folders, steps=2_000)
    for run in study.runs():
        final = FINALS[run.env][run.label][run.seed]
        # A baseline that is twice as good, measured from random actions, but at the very end
        before = RANDOM + 2 * (final - RANDOM) if run.label == "sac" else final
        rewrite_evaluations(folders.record(study.name, run), [before] * 9 + [final])
    results = collect(study, folders)
    together = compute(replace(results, last=5))
    best = RANDOM + (4 * 400 + 200) / 5  # SAC's on Pendulum
    assert replace(results, last=5).scales["Pendulum-v1"] == (RANDOM, pytest.approx(best), "sac")
    scores = [(final - RANDOM) / (best - RANDOM) for final in FINALS["Pendulum-v1"]["flowrl"]]
    scores += [(final - RANDOM) / 200 for final in FINALS["MountainCarContinuous-v0"]["flowrl"]]  # TD3 is the best there
    assert together.aggregates["flowrl"][0][0] == pytest.approx(trim_mean(scores, 0.25))
    markdown, _ = pages(study, folders)
    assert "mean of each run's last 5 evaluations" in markdown
    assert f"| flowrl | {together.aggregates['flowrl'][0][0]:.2f} (" in markdown
    assert (
        "mean of each run's last 5"
        not in pages(make(tmp_path, Folders(tmp_path / "few", tmp_path)), Folders(tmp_path / "few", tmp_path))[0]
    )


def test_ratios_to_the_best_baseline_are_put_together(tmp_path, folders):
    study = make(tmp_path, folders, steps=2_000)
    for run in study.runs():
        if run.label == "flowrl":
            rewrite_evaluations(folders.record(study.name, run), [20.0] * 9 + [FINALS[run.env][run.label][run.seed]])
        else:
            rewrite_evaluations(folders.record(study.name, run), [FINALS[run.env][run.label][run.seed]] * 10)
    # FlowRL ends at 50 and 300 and averages (4 * 20 + 50) / 5 and (4 * 20 + 300) / 5; the best of the others is 100 on both
    row = "| flowrl | 1.75 | 0.50, Pendulum-v1 | 1 of 2 | 0.51 | 0.26, Pendulum-v1 | 0 of 2 |"
    assert row in pages(study, folders)[0]


def test_equal_processor_time_is_that_of_the_fastest(tmp_path, folders):
    study = make(tmp_path, folders)
    for run in study.runs():
        path = folders.record(study.name, run)
        record = json.loads(path.read_text())
        # Half of the time on the wall's clock went to others; TD3 takes 60 seconds of the processor for all, the others 240
        seconds = 120.0 if run.label == "td3" else 480.0
        record.update(seconds=seconds, cpu_seconds=seconds / 2)
        for index, point in enumerate(record["evaluations"], start=1):
            point["seconds"] = seconds * index / 3
        write_atomically(path, json.dumps(record))
    first = collect(study, folders).of("Pendulum-v1", "flowrl")[2]  # rises in a straight line from -100 to 100
    assert [first.after(seconds) for seconds in (0.0, 60.0, 160.0, 999.0)] == pytest.approx([-100.0, -50.0, 100 / 3, 100.0])
    # A quarter of the way, from -100, to the means of the ends, 50 and 100
    assert "| Pendulum-v1 | 1.0 | -62.5 | -50.0 | 0.0 |" in pages(study, folders)[0]


def test_modes_are_compared_over_the_seeds(tmp_path, folders):
    study = make(tmp_path, folders)
    for seed, lead in enumerate((3.0, 6.0, 30.0)):
        run = next(run for run in study.runs() if (run.env, run.label, run.seed) == ("Pendulum-v1", "flowrl", seed))
        path = folders.record(study.name, run)
        record = json.loads(path.read_text())
        record["evaluations"][-1]["stochastic"] = [value - lead for value in record["evaluations"][-1]["deterministic"]]
        write_atomically(path, json.dumps(record))
    assert "| Pendulum-v1 | flowrl | 13.0 | [0](" in pages(study, folders)[0]


def test_iqm_without_a_task_is_that_of_the_others(tmp_path, folders):
    study = make(tmp_path, folders)
    leaving_out = compute(collect(study, folders)).leaving_out["flowrl"]
    expected = [trim_mean([(final - RANDOM) / 200 for final in FINALS[task]["flowrl"]], 0.25) for task in reversed(TASKS)]
    assert leaving_out == pytest.approx(expected)
    assert f"| flowrl | {expected[0]:.2f} | {expected[1]:.2f} |" in pages(study, folders)[0]


def test_lead_is_the_difference_of_iqms(tmp_path, folders):
    statistics = compute(collect(make(tmp_path, folders), folders))
    value, low, high = statistics.lead["flowrl", "sac"][0]
    difference = statistics.aggregates["flowrl"][0][0] - statistics.aggregates["sac"][0][0]
    assert value == pytest.approx(difference) and low < value < high


def test_same_files_make_the_same_report(tmp_path, folders, drawn_figures):
    study = make(tmp_path, folders)
    folder = folders.results / study.name

    def state() -> dict[Path, bytes]:
        write_report(study, folders)
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = state()
    assert before == state() and len([path for path in before if path.suffix == ".svg"]) == 5


def test_every_link_leads_somewhere_and_the_html_needs_no_other_file(tmp_path, folders, drawn_figures):
    study = make(tmp_path, folders)
    markdown, html = pages(study, folders)
    folder = folders.results / study.name
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len(set(links)) == 18 + 5 and all((folder / link).is_file() for link in links)
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 5 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script" not in html and "<link" not in html


def test_what_is_missing_is_said_and_in_no_number(tmp_path, folders):
    missing = {"Pendulum-v1_flowrl_seed2", "MountainCarContinuous-v0_td3_seed1"}
    study = make(tmp_path, folders, without=missing)
    write_atomically(folders.failure(study.name, study.runs()[0]), "of an earlier attempt")
    failed = next(run for run in study.runs() if run.name == "Pendulum-v1_flowrl_seed2")
    write_atomically(folders.failure(study.name, failed), "Traceback\nValueError: it broke\n")
    markdown, _ = pages(study, folders)
    assert (
        "**16 of 18 runs are finished.** Not finished, and in none of the numbers (with their seeds): "
        "td3 on MountainCarContinuous-v0, 1." in markdown
    )
    assert "- [Pendulum-v1_flowrl_seed2](failures/Pendulum-v1_flowrl_seed2.txt): `ValueError: it broke`" in markdown
    assert "earlier attempt" not in markdown
    block = choose_block(collect(study, folders))
    assert block.envs == TASKS and block.seeds == dict(flowrl=[0, 1], sac=[0, 1, 2], td3=[0, 2])
    assert "flowrl: 0, 1; sac: 0, 1, 2; td3: 0, 2" in markdown


def test_task_that_not_all_have_run_is_left_out_of_the_average(tmp_path, folders):
    missing = {f"Pendulum-v1_td3_seed{seed}" for seed in SEEDS}
    study = make(tmp_path, folders, without=missing)
    markdown, _ = pages(study, folders)
    assert choose_block(collect(study, folders)).envs == ["MountainCarContinuous-v0"]
    assert "no baseline beats random actions: Pendulum-v1." in markdown
    assert "| Pendulum-v1 | td3 | not run |" in markdown


def test_one_run_has_no_interval(tmp_path, folders):
    missing = {f"{task}_{label}_seed{seed}" for task in TASKS for label in ("flowrl", "sac", "td3") for seed in (1, 2)}
    markdown, _ = pages(make(tmp_path, folders, without=missing), folders)
    assert "One run of an algorithm is no sample" in markdown
    assert not re.search(r"\([-\d.]+ to [-\d.]+\)", markdown)


def test_study_without_any_run_has_a_report(tmp_path, folders):
    study = make_study(tmp_path)
    markdown, html = pages(study, folders)
    assert "**0 of 2 runs are finished.**" in markdown and "A made-up question?" in html


def test_findings_are_part_of_the_report(tmp_path, folders):
    study = make(tmp_path, folders)
    write_atomically(folders.results / study.name / "findings.md", "## What it shows\n\nNothing at all.\n")
    markdown, html = pages(study, folders)
    assert "## What it shows\n\nNothing at all." in markdown and "<p>Nothing at all.</p>" in html


def test_instruments_are_reported_where_there_are_some(tmp_path, folders):
    study = make(tmp_path, folders)
    assert "## Instruments" not in pages(study, folders)[0]
    for seed, values in enumerate([[0.5, 0.25], [0.125]]):  # the first one's first lies before half of the steps
        path = folders.record(study.name, next(r for r in study.runs() if (r.label, r.seed) == ("flowrl", seed)))
        record = json.loads(path.read_text())
        steps = [200, 600][-len(values) :]
        record["diagnostics"] = [
            dict(
                step=step, action_spread=value, gradient_cosine=None, constraint_gradient_norm=2 * value, q_gradient_norm=value
            )
            for step, value in zip(steps, values, strict=True)
        ]
        write_atomically(path, json.dumps(record))
    report = pages(study, folders)[0]
    assert "| run | action spread | q gradient norm | constraint gradient norm | gradient cosine |" in report
    assert "[Pendulum-v1_flowrl_seed0](runs/Pendulum-v1_flowrl_seed0.json) | 0.25 | 0.25 | 0.5 | nan |" in report
    assert "[Pendulum-v1_flowrl_seed1](runs/Pendulum-v1_flowrl_seed1.json) | 0.125 | 0.125 | 0.25 | nan |" in report
    assert "| gradient cosine | constraint's gradient norm / Q's | seeds |" in report
    assert "| Pendulum-v1 | flowrl | 0.125 to 0.25 | 0.125 to 0.25 | 0.25 to 0.5 |  | 2 | [0](runs/" in report
    first, second, _ = collect(study, folders).of("Pendulum-v1", "flowrl")
    assert [each.tolist() for each in first.measured("action_spread")] == [[200, 600], [0.5, 0.25]]
    assert first.measured("q_bias")[0].size == second.measured("q_bias")[0].size == 0
    assert (folders.results / study.name / "figures" / "instruments.svg").exists()


def test_figure_that_would_be_a_large_svg_is_a_png(tmp_path, folders, monkeypatch, drawn_figures):
    study = make(tmp_path, folders)
    figures = folders.results / study.name / "figures"
    endings = []
    for limit in (MAX_SVG_BYTES, 0, MAX_SVG_BYTES):
        monkeypatch.setattr(figures_module, "MAX_SVG_BYTES", limit)
        markdown, html = pages(study, folders)
        names = sorted(path.name for path in figures.iterdir())
        assert len(names) == 5 and all(f"](figures/{name})" in markdown for name in names)
        assert html.count('src="data:image/') == 5 == html.count(f"data:image/{'png' if limit == 0 else 'svg+xml'};base64,")
        endings.append({Path(name).suffix for name in names})
    assert endings == [{".svg"}, {".png"}, {".svg"}]


def test_comparisons_have_a_figure_each(tmp_path, folders):
    study = make(tmp_path, folders, comparisons={"Old and new": ["sac", "flowrl"], "Old": ["sac", "td3"]})
    markdown, _ = pages(study, folders)
    assert "### Old and new" in markdown and "figures/curves.svg" in markdown and "figures/curves1.svg" in markdown


def test_command_rebuilds_the_report_from_the_results_alone(tmp_path, folders, monkeypatch, capsys):
    study = make(tmp_path, folders)
    written = tmp_path / f"{study.name}.yml"
    written.rename(folders.results / study.name / written.name)
    monkeypatch.setattr(sys, "argv", ["study", "report", "--results", str(folders.results)])
    with pytest.raises(SystemExit, match="0"):
        main()
    pages = [str(folders.results / study.name / name) for name in ("report.md", "report.html")]
    assert capsys.readouterr().out.split() == pages


def test_command_makes_the_other_reports_if_one_is_wrong(tmp_path, folders, monkeypatch, capsys):
    study = make(tmp_path, folders)
    (tmp_path / f"{study.name}.yml").rename(folders.study(study.name))
    write_atomically(folders.study("broken"), "steps: [")
    monkeypatch.setattr(sys, "argv", ["study", "report", "--results", str(folders.results)])
    with pytest.raises(SystemExit, match=r"^error: .*broken.yml is not YAML"):
        main()
    assert str(folders.results / study.name / "report.html") in capsys.readouterr().out


def test_command_keeps_the_study_file_of_other_results(tmp_path, folders, monkeypatch):
    study = make(tmp_path, folders)
    write_atomically(folders.study(study.name), "as it was")
    changed = write_study(tmp_path, study.name, environments=TASKS, steps=1200)
    monkeypatch.setattr(sys, "argv", ["study", "run", str(changed), "--results", str(folders.results)])
    with pytest.raises(SystemExit, match=r"^error: .* is of another run than would be made now: steps was 600, and is 1200"):
        main()
    assert folders.study(study.name).read_text() == "as it was"


def test_command_keeps_the_study_file_that_asks_for_more(tmp_path, folders, monkeypatch, capsys):
    study = make(tmp_path, folders)
    written = (tmp_path / f"{study.name}.yml").rename(folders.study(study.name)).read_text()
    narrow = write_study(tmp_path, study.name, environments=TASKS[:1], baselines=["sac"])
    arguments = ["--results", str(folders.results), "--work", str(folders.work)]
    monkeypatch.setattr(sys, "argv", ["study", "run", str(narrow), *arguments])
    with pytest.raises(SystemExit, match=r"^error: .* asks for 16 finished runs .* Give the smaller study a name of its own"):
        main()
    assert folders.study(study.name).read_text() == written
    for run in study.runs():
        if run.label == "td3" or run.env != TASKS[0] or run.seed:
            folders.record(study.name, run).unlink()
    with pytest.raises(SystemExit, match="0"):  # of what it leaves out nothing is there
        main()
    assert folders.study(study.name).read_text() == narrow.read_text()


def test_study_with_the_other_ending_is_reported_too(tmp_path, folders, monkeypatch, capsys):
    study = make(tmp_path, folders)
    path = (tmp_path / f"{study.name}.yml").rename(tmp_path / f"{study.name}.yaml")
    arguments = ["--results", str(folders.results), "--work", str(folders.work)]
    monkeypatch.setattr(sys, "argv", ["study", "run", str(path), *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    monkeypatch.setattr(sys, "argv", ["study", "report", *arguments[:2]])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert str(folders.results / study.name / "report.md") in capsys.readouterr().out


def test_make_study_reports_on_runs_that_failed(tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$3 $4"\ntest "$3" = report\n')
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "-s", "study", "STUDY=any"]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.stdout.split("\n")[:2] == ["run any", "report any"] and made.returncode != 0


def change_default_tau(path: Path, tau: float) -> None:
    record = json.loads(path.read_text())
    record["defaults"]["tau"] = tau
    write_atomically(path, json.dumps(record))


def test_runs_that_were_not_made_alike_are_named(tmp_path, folders):
    study = make(tmp_path, folders)
    assert "not made alike" not in pages(study, folders)[0]
    change_default_tau(
        folders.record(study.name, next(run for run in study.runs() if run.name == "Pendulum-v1_flowrl_seed1")), 0.5
    )
    line = "- [Pendulum-v1_flowrl_seed1](runs/Pendulum-v1_flowrl_seed1.json), beside seed 0: tau was 0.95 and is 0.5"
    assert line in pages(study, folders)[0]


def test_variants_of_an_algorithm_with_other_defaults_are_named(tmp_path, folders):
    algorithms: dict = dict(flowrl=None, sac=None, slow=dict(algo="flowrl", hyperparameters=dict(learning_rate=1e-4)))
    study = make_study(tmp_path, algorithms=algorithms)
    for run in study.runs():
        finish(study, run, folders, 1.0)
    assert "not made alike" not in pages(study, folders)[0]
    change_default_tau(folders.record(study.name, next(run for run in study.runs() if run.label == "slow")), 0.005)
    line = "Pendulum-v1_slow_seed0.json), beside Pendulum-v1_flowrl_seed0, unasked: tau was 0.95 and is 0.005"
    assert line in pages(study, folders)[0]


def test_mean_of_fewer_than_four_scores_is_not_passed_off_as_interquartile(tmp_path, folders):
    missing = {f"{task}_{label}_seed2" for task in TASKS for label in ("flowrl", "sac", "td3")}
    study = make(tmp_path, folders, without=missing)
    assert "Of fewer than four scores" not in pages(study, folders)[0]
    for label in ("flowrl", "sac", "td3"):
        folders.record(study.name, next(r for r in study.runs() if r.name == f"Pendulum-v1_{label}_seed1")).unlink()
        folders.record(study.name, next(r for r in study.runs() if r.name == f"{TASKS[1]}_{label}_seed1")).unlink()
    assert "Of fewer than four scores, the IQM leaves none out: it is their mean." in pages(study, folders)[0]


def test_command_says_what_is_wrong_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", "report", "no-such-study", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: There is no study 'no-such-study'\."):
        main()


def test_command_says_that_there_are_no_results(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", "report", "--results", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"There are no studies' results in .*none"):
        main()


@pytest.mark.slow
def test_smoke_study_from_end_to_end(tmp_path):
    for command in ("run", "report"):
        arguments = ["--results", str(tmp_path / "results")]
        arguments += ["--work", str(tmp_path / "work")] if command == "run" else []
        subprocess.run([sys.executable, "-m", "studies", command, "smoke", *arguments], cwd=ROOT, check=True)
    folder = tmp_path / "results" / "smoke"
    assert "**4 of 4 runs are finished.**" in (folder / "report.md").read_text()
    records = [json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")]
    assert len(records) == 4 and (folder / "report.html").stat().st_size > 50_000
