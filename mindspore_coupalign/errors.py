"""Errors for users."""


class UserError(Exception):
    """Bad input that the user can fix: one line that names the file, the field and the remedy.

    The command line prints it after ``error:`` without a traceback and exits with code 2.
    """


def one_line(exc: BaseException, most: int = 120) -> str:
    """Another library's exception on one line: its text, or its class if it has none.

    Args:
        most: characters that are kept.
    """
    return " ".join(str(exc).split())[:most] or type(exc).__name__
