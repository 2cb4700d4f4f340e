"""
What the terminal shows of a study that is running.
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
#: Seconds between lines where the output is not a terminal.
LINE_EVERY = 60.0


class Progress:
    """
    One line that is kept up to date; where the output is not a terminal, a line a minute.

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
        :param done: number of runs that are finished
        :param failed: number of runs that failed
        :param pending: number of all other runs
        :param steps: environment steps done, of those of the other runs that have begun
        :param running: names of those at which somebody works now
        """
        now = time.monotonic()
        # Only what is seen to be gained counts for the speed: a resumed run begins anywhere, also behind where it was
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
        :param message: what is to stay on the terminal
        """
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _speed(self, steps_left: int) -> list[str]:
        (then, gained_then), (now, gained_now) = self.readings[0], self.readings[-1]
        if gained_now == gained_then:
            return ["no steps yet"]
        rate = (gained_now - gained_then) / (now - then)
        hours, minutes = divmod(round(steps_left / rate / 60), 60)
        return [f"{rate:.0f} steps/s", f"{hours} h {minutes:02} min left"]
