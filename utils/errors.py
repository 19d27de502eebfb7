"""The one exception that stands for a mistake of the user's, not ours."""


class UserError(Exception):
    """Bad input: the message is one sentence with the values. Scripts print it and exit with code 2."""
