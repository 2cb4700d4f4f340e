"""Test what the repository holds of the studies' results."""

import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import pytest

from studies import estimates
from studies import figures as figures_module
from studies.figures import MAX_SVG_BYTES
from studies.records import RESULTS, ROOT, Folders
from studies.report import write_report
from studies.study import load_study
from tests.marks import slow_except


def drawn_by_this_matplotlib(path: Path) -> bool:
    return f"Matplotlib v{matplotlib.__version__}," in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_report_made_again_changes_nothing(tmp_path):
    name = "swimmer"
    kept, again = RESULTS / name, tmp_path / name
    shutil.copytree(kept, again)
    figures = sorted(path.relative_to(again) for path in again.glob("figures/*"))
    write_report(load_study(again / f"{name}.yml"), Folders(results=tmp_path))
    assert (again / "report.md").read_text() == (kept / "report.md").read_text()
    assert sorted(path.relative_to(again) for path in again.glob("figures/*")) == figures
    for path in figures:
        # Other versions of matplotlib draw other files from the same numbers
        assert (again / path).read_bytes() == (kept / path).read_bytes() or not drawn_by_this_matplotlib(kept / path)


def without_intervals(text: str) -> str:
    return re.sub(r"-?[\d.,]+ to -?[\d.,]+", "", text)


#: The studies whose runs are in the repository; the text of two is made again in every run of the tests.
STUDIES = sorted(path.stem for path in RESULTS.glob("*/*.yml"))
QUICK = ("swimmer", "precision")


@pytest.mark.parametrize("name", slow_except(QUICK, STUDIES))
def test_text_and_estimates_made_again_are_those_in_the_repository(name, tmp_path, monkeypatch):
    """The quick half of the test above: few resamplings, and the figures as they are."""
    monkeypatch.setattr(estimates, "REPLICATIONS", 5)
    monkeypatch.setattr(figures_module, "_save", lambda figure, stem: next(stem.parent.glob(f"{stem.name}.*")))
    for other in RESULTS.iterdir():  # a study may include the runs of others
        (tmp_path / other.name).symlink_to(other)
    kept, again = RESULTS / name, tmp_path / name
    again.unlink()
    shutil.copytree(kept, again)
    write_report(load_study(again / f"{name}.yml"), Folders(results=tmp_path))
    assert without_intervals((again / "report.md").read_text()) == without_intervals((kept / "report.md").read_text())


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/runs")), ids=lambda path: path.name)
def test_every_study_with_runs_has_its_definition_and_a_report(folder):
    assert (folder / f"{folder.name}.yml").is_file() and (folder / "report.md").is_file()


def test_figures_are_small():
    sizes = {path: path.stat().st_size for path in RESULTS.rglob("*.svg")}
    assert sizes and max(sizes.values()) <= MAX_SVG_BYTES


def test_git_ignores_html_reports_and_the_smoke_study(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    written = ["smoke.yml", "report.md", "report.html", "figures/curves.svg", "runs/a.json", "failures/b.txt"]
    ignored = [f"studies/results/smoke/{path}" for path in written]
    ignored += ["studies/results/learning/report.html", "runs/study/smoke/a/checkpoints/b"]
    kept = [f"studies/results/learning/{path}" for path in written if path != "report.html"]
    listed = subprocess.run(
        ["git", "check-ignore", *ignored, *kept], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert listed == ignored
