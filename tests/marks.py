"""Marks of parametrized tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """
    Mark most values of a parametrized test as slow.

    :param fast: the values that the README's test command runs
    :param values: all values
    :return: the values in their order
    """
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
