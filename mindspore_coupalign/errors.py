"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input that the user can fix: one line that names the file, the field and the remedy.

    The command line prints it after ``error:`` and exits with code 2; it never shows a traceback for it.
    """
