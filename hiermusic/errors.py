"""The one exception a person is meant to read."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do about it."""
