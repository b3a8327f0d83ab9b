"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input that the user can fix: one line that names the file, the field and the remedy.

    The command line prints it after ``error:`` and exits with code 2; it never shows a traceback for it.
    """


def one_line(exc: BaseException, most: int = 120) -> str:
    """Another library's exception for a message of ours: its text on one line, or its class where it has none.

    Args:
        most: characters.
    """
    return " ".join(str(exc).split())[:most] or type(exc).__name__
