"""
What the terminal shows of a study that is running.
"""

import sys
import time
from collections import deque
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
    :param steps_to_do: environment steps of all runs together, those that are done included
    """

    def __init__(self, study: str, steps_to_do: int):
        self.study, self.steps_to_do = study, steps_to_do
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

    def show(self, done: int, failed: int, waiting: int, running: dict[str, int], steps_done: int) -> None:
        """
        :param done: number of runs that are finished
        :param failed: number of runs that failed
        :param waiting: number of runs that have not begun
        :param running: the other runs' names, and the share in percent that is done of each
        :param steps_done: environment steps that are done, of all runs together
        """
        now = time.monotonic()
        self.readings.append((now, steps_done))
        while now - self.readings[0][0] > WINDOW:
            self.readings.popleft()
        text = " | ".join(
            [
                f"{self.study}: {done} done, {len(running)} running, {failed} failed, {waiting} waiting",
                *self._speed(now),
                *(f"{name} {percent} %" for name, percent in running.items()),
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

    def _speed(self, now: float) -> list[str]:
        (then, steps_then), (_, steps_now) = self.readings[0], self.readings[-1]
        if now - then < 1.0 or steps_now <= steps_then:
            return ["no steps yet"]
        rate = (steps_now - steps_then) / (now - then)
        minutes = (self.steps_to_do - steps_now) / rate / 60
        return [f"{rate:.0f} steps/s", f"{minutes // 60:.0f} h {minutes % 60:02.0f} min left"]
