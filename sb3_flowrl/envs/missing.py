"""
What is said when an environment is made whose suite is not there.
"""


class MissingSuiteError(ImportError):
    """
    The suite of an environment can't be imported.

    :param suite: its name
    :param what_to_do: the command that installs it, or what else gives access to it
    :param cause: what went wrong
    """

    def __init__(self, suite: str, what_to_do: str, cause: str):
        super().__init__(f"{suite} can't be imported ({cause}). {what_to_do}")
