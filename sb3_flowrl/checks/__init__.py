"""
Checks of what users and environments provide.

Each check raises an error that says what is wrong and what to do.
"""
