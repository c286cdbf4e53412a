"""The one exception of this library for input that cannot be used."""


class InputError(ValueError):
    """What the caller gave cannot be used; the message names it and says what to do.

    It is a `ValueError`, so library users need not know it. The scripts catch
    exactly this class and end with its message in one line and exit status 2,
    while any other exception is a bug and keeps its traceback.
    """
