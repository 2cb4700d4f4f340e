"""The extensions of the documentation site."""

from pathlib import Path

import pytest

from sb3_flowrl import FlowRL

pytest.importorskip("sphinx")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def extensions_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))


def test_descriptions_come_from_the_docstring():
    from argument_tables import describe_arguments

    descriptions = describe_arguments(FlowRL)
    assert descriptions["batch_size"] == "Minibatch size for each gradient update"
    assert all("\n" not in text and ":param" not in text for text in descriptions.values())


def test_links_to_reports_lead_to_their_pages_and_others_keep_their_targets(tmp_path, monkeypatch):
    import study_reports

    study = tmp_path / "studies" / "results" / "learning"
    study.mkdir(parents=True)
    (study / "report.md").write_text("")
    monkeypatch.setattr(study_reports, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(study_reports, "RESULTS", study.parent)
    monkeypatch.setattr(study_reports, "PAGES", tmp_path / "docs" / "reports")

    page = (
        "[a](../studies/results/learning/report.md#top) ![b](../x.svg) [c](method.md) [d](../NOTES.md) "
        "[e](https://x.org/y.md) [f](#here) [g](../studies)"
    )
    assert study_reports.lead_links(page, tmp_path / "docs", tmp_path / "docs") == (
        "[a](reports/learning.md#top) ![b](../x.svg) [c](method.md) [d](path:../NOTES.md) [e](https://x.org/y.md) [f](#here) g"
    )
    report = "![b](figures/curves.svg) [c](../learning/report.md) [d](../../../docs/method.md)"
    assert study_reports.lead_links(report, study, tmp_path / "docs" / "reports") == (
        "![b](../../studies/results/learning/figures/curves.svg) [c](learning.md) [d](../method.md)"
    )
