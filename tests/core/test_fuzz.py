"""Random configurations, a third with something odd in them, work or say why they don't."""

import pytest

from tests.fuzz import run, summarize


@pytest.mark.slow
def test_random_configurations_work_or_say_why_they_do_not():
    results = [run(seed) for seed in range(150)]
    bad = [result for result in results if result.outcome in ("raw", "false") and not result.is_sb3s_own]
    assert not bad, summarize(bad)
    assert sum(result.outcome == "ok" for result in results) > 75


def test_a_configuration_is_drawn_from_its_number_alone():
    first = next(result for seed in range(20) if (result := run(seed)).outcome == "refused")
    assert run(first.seed) == first and len(first.message) > 30 and first.odd
