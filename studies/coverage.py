"""
Measure how evenly a policy uses the different ways to solve its task. ``Evaluate`` collects the ways.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

#: The way that each episode of an evaluation took; None if it did not succeed.
Ways = Sequence[str | None]


def success_rate(ways: Ways) -> float:
    """
    Compute the share of episodes that succeeded.

    :param ways: of an evaluation's episodes
    :return: the share, from 0 to 1
    """
    return sum(way is not None for way in ways) / len(ways)


def n_ways(ways: Ways) -> int:
    """
    Count the different ways that were taken.

    :param ways: of an evaluation's episodes
    :return: their number
    """
    return len({*ways} - {None})


def entropy(ways: Ways) -> float:
    """
    Compute the entropy of the ways of the episodes that succeeded.

    It is log2(n) if n ways were taken equally often, and 0 if the way was always the same. The shares of the episodes stand in
    for probabilities, which makes the result a little too small when the episodes are few.

    :param ways: of an evaluation's episodes
    :return: the entropy in bits; 0 if no episode succeeded
    """
    counts = np.array(list(Counter(way for way in ways if way is not None).values()), dtype=float)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # turns -0.0 into 0.0
