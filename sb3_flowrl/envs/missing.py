"""
The error for an environment whose suite is missing.
"""


class MissingSuiteError(ImportError):
    """
    Raised when the suite of an environment can't be imported.

    :param suite: name of the suite
    :param what_to_do: command that installs it, or another way to get it
    :param cause: what went wrong
    """

    def __init__(self, suite: str, what_to_do: str, cause: str):
        super().__init__(f"{suite} can't be imported ({cause}). {what_to_do}")
