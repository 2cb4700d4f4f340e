"""
Define two small environments that have several equally good solutions.

In both, a point moves in the square [-1, 1]² from a fixed start to a goal; nothing is random. The observation is its position,
and the action is its step in units of ``STEP``. Each step costs the length of the shortest path to a goal, relative to the
length from the start. Reaching a goal ends the episode and pays ``GOAL_REWARD``. After each step, ``info`` says whether a goal
is reached (``is_success``) and which way led to it (``way``: a name, or None before). The environments are symmetric to the
last bit: mirrored actions lead to mirrored positions and the same rewards.
"""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

GOAL_REWARD = 10.0


class PointEnv(gym.Env):
    """
    The common parts of both environments.
    """

    #: Distance that an action of 1 moves the point along each axis.
    STEP: float
    #: Distance at which a goal counts as reached.
    RADIUS: float
    START: tuple[float, float]

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the point at the start."""
        super().reset(seed=seed)
        self.position = np.array(self.START)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the point."""
        step = self.STEP * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        self._move(np.clip(self.position + step, -1.0, 1.0))
        way = self._way()
        reward = -self._distance(self.position) / self._distance(np.array(self.START))
        if way is not None:
            reward += GOAL_REWARD
        return self._observation(), reward, way is not None, False, dict(is_success=way is not None, way=way)

    def _observation(self) -> np.ndarray:
        return self.position.astype(np.float32)

    def _move(self, target: np.ndarray) -> None:
        """Move to a point of the square, or as far as nothing is in the way."""
        self.position = target

    def _distance(self, position: np.ndarray) -> float:
        """Compute the length of the shortest path to a goal."""
        raise NotImplementedError

    def _way(self) -> str | None:
        """Name the way by which the point has reached a goal, or return None if it has not."""
        raise NotImplementedError


class MultiGoalEnv(PointEnv):
    """
    Four equal goals around the start, with no reason to prefer one.

    Based on the multi-goal environment of Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies" (ICML
    2017), the paper on soft Q-learning, but with a different reward, a time limit instead of its path length, and a bounded
    square.
    """

    STEP, RADIUS, START = 0.1, 0.15, (0.0, 0.0)
    GOALS: ClassVar = {"right": (0.8, 0.0), "up": (0.0, 0.8), "left": (-0.8, 0.0), "down": (0.0, -0.8)}

    def _distance(self, position: np.ndarray) -> float:
        return min(_length(position, goal) for goal in self.GOALS.values())

    def _way(self) -> str | None:
        return next((name for name, goal in self.GOALS.items() if _length(self.position, goal) <= self.RADIUS), None)


class TwoWaysEnv(PointEnv):
    """
    A maze: a wall between start and goal, with ends at equal distances to the left and to the right.

    The point slides along the wall. Its way is the side on which it last moved up past the middle of the wall.
    """

    STEP, RADIUS, START = 0.2, 0.2, (0.0, -0.6)
    GOAL = (0.0, 0.6)
    #: Half the width and half the height of the wall, which is centered in the square. It is thicker than a step is long.
    WALL = (0.4, 0.12)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the point at the start."""
        self.side: str | None = None
        return super().reset(seed=seed, options=options)

    def _move(self, target: np.ndarray) -> None:
        old, sideways = self.position, np.array([target[0], self.position[1]])
        along = np.array([self.position[0], target[1]])
        self.position = next((each for each in (target, sideways, along) if not self._is_in_wall(each)), old)
        if old[1] < 0.0 <= self.position[1]:
            self.side = "left" if self.position[0] < 0.0 else "right"

    def _is_in_wall(self, position: np.ndarray) -> bool:
        return abs(position[0]) < self.WALL[0] and abs(position[1]) < self.WALL[1]

    def _distance(self, position: np.ndarray) -> float:
        """Compute the length of the path around the nearer end of the wall, if the wall is between the point and the goal."""
        x, y = abs(position[0]), position[1]
        width, height = self.WALL
        below, above = (width, -height), (width, height)
        if y >= height or x * (self.GOAL[1] - height) >= width * (self.GOAL[1] - y):
            return _length((x, y), self.GOAL)
        from_above = _length(above, self.GOAL)
        if x >= width:
            return _length((x, y), above) + from_above
        return _length((x, y), below) + _length(below, above) + from_above

    def _way(self) -> str | None:
        return self.side if _length(self.position, self.GOAL) <= self.RADIUS else None


def _length(start: Any, end: Any) -> float:
    """Compute the length of a straight line. Squares, sum and root are the same for mirrored points, to the last bit."""
    return float(np.sqrt((start[0] - end[0]) ** 2 + (start[1] - end[1]) ** 2))
