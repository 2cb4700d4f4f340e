"""What the terminal shows of a study that is running."""

import pytest

from studies import progress
from studies.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1_000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_line_tells_of_runs_speed_and_time_left(clock, capsys):
    with Progress("study", steps_a_run=1_000) as shown:
        shown.show(done=1, failed=2, pending=3, steps={"a": 100}, running=["a"])
        clock.now += 100
        shown.show(done=1, failed=2, pending=3, steps={"a": 300, "b": 50}, running=["a", "b"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("study: 1 done, 1 running, 2 failed, 2 waiting | no steps yet | a 10 %")
    # Of b nobody saw how it came to 50. 3 000 - 350 steps are left, at 2 a second
    assert second.endswith("1 done, 2 running, 2 failed, 1 waiting | 2 steps/s | 0 h 22 min left | a 30 % | b 5 %")


def test_a_run_that_falls_back_to_its_checkpoint_slows_nothing_down(clock, capsys):
    with Progress("study", steps_a_run=1_000) as shown:
        for step in (0, 600, 400, 700):
            shown.show(done=0, failed=0, pending=1, steps={"a": step}, running=["a"])
            clock.now += 100
    assert "3 steps/s" in capsys.readouterr().out.splitlines()[-1]  # 600 and 300 in 300 seconds


def test_lines_come_once_a_minute(clock, capsys):
    with Progress("study", steps_a_run=1_000) as shown:
        for _ in range(61):
            shown.show(done=0, failed=0, pending=1, steps={}, running=[])
            clock.now += 1
    assert len(capsys.readouterr().out.splitlines()) == 2
