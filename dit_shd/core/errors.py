"""The one exception a user can cause: its message is a single clear line."""


class UserError(ValueError):
    """Wrong input. Says what was wanted, what was found and what to do; commands print it and exit with 2."""
