"""
How evenly a policy takes the ways that its task can be solved in, see ``Evaluate`` for where they come from.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

#: The way that each episode of an evaluation took; None where it did not succeed.
Ways = Sequence[str | None]


def success_rate(ways: Ways) -> float:
    """
    :param ways: of an evaluation's episodes
    :return: the share of episodes that succeeded
    """
    return sum(way is not None for way in ways) / len(ways)


def n_ways(ways: Ways) -> int:
    """
    :param ways: of an evaluation's episodes
    :return: how many different ones were taken
    """
    return len({*ways} - {None})


def entropy(ways: Ways) -> float:
    """
    The entropy of the ways of the episodes that succeeded: log2(n) if n ways were taken equally often, 0 if it was always the
    same. It is computed from the episodes' shares, which makes it a little too small where the episodes are few.

    :param ways: of an evaluation's episodes
    :return: the entropy in bits; 0 if no episode succeeded
    """
    counts = np.array(list(Counter(way for way in ways if way is not None).values()), dtype=float)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no minus before a 0
