"""
Show the progress of a running study in the terminal.
"""

import sys
import time
from collections import deque
from collections.abc import Collection
from types import TracebackType

from rich.console import Console
from rich.live import Live

#: Seconds over which the speed is measured.
WINDOW = 300.0
#: Seconds between lines if the output is not a terminal.
LINE_EVERY = 60.0


class Progress:
    """
    One line that is kept up to date, or a line a minute if the output is not a terminal.

    :param study: the study's name
    :param steps_a_run: environment steps of each run
    """

    def __init__(self, study: str, steps_a_run: int):
        self.study, self.steps_a_run = study, steps_a_run
        self.last_steps: dict[str, int] = {}
        self.gained = 0
        self.readings: deque[tuple[float, int]] = deque()
        self.console = Console(file=sys.stdout)
        self.live = Live("", console=self.console, auto_refresh=False)
        self.last_line = -LINE_EVERY

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def show(self, done: int, failed: int, pending: int, steps: dict[str, int], running: Collection[str]) -> None:
        """
        Show the state of the study.

        :param done: number of runs that are finished
        :param failed: number of runs that failed
        :param pending: number of all other runs
        :param steps: environment steps done by the pending runs that have begun
        :param running: names of the runs that are being worked on now
        """
        now = time.monotonic()
        # Only observed gains count for the speed: a resumed run can start at any step, even below its last one
        self.gained += sum(max(step - self.last_steps.get(name, step), 0) for name, step in steps.items())
        self.last_steps = dict(steps)
        self.readings.append((now, self.gained))
        while now - self.readings[0][0] > WINDOW:
            self.readings.popleft()
        text = " | ".join(
            [
                f"{self.study}: {done} done, {len(running)} running, {failed} failed, {pending - len(running)} waiting",
                *self._speed(self.steps_a_run * pending - sum(steps.values())),
                *(f"{name} {100 * steps[name] // self.steps_a_run} %" for name in running),
            ]
        )
        if self.console.is_terminal:
            self.live.update(text, refresh=True)
        elif now - self.last_line >= LINE_EVERY:
            self.last_line = now
            print(time.strftime("%H:%M:%S"), text, flush=True)

    def say(self, message: str) -> None:
        """
        Print a message above the line.

        :param message: the message; it stays on the terminal
        """
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _speed(self, steps_left: int) -> list[str]:
        (then, gained_then), (now, gained_now) = self.readings[0], self.readings[-1]
        if gained_now == gained_then:
            return ["no steps yet"]
        rate = (gained_now - gained_then) / (now - then)
        hours, minutes = divmod(round(steps_left / rate / 60), 60)
        return [f"{rate:.0f} steps/s", f"{hours} h {minutes:02} min left"]
