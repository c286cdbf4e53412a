"""The one exception that this library raises for input it cannot use."""


class InputError(ValueError):
    """The caller gave something that cannot be used; the message names it and says what to do.

    It is a `ValueError`, so library users need not know this class. The scripts catch it and nothing else: they print
    its message in one line and end with exit status 2. Any other exception is a bug and keeps its traceback.
    """
