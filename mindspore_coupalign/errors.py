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


_KINDS = (
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
)


def kind_of_file(start: bytes) -> str:
    """"a zip archive: unpack it first" and the like from a file's first bytes; empty where nothing is recognised."""
    if not start:
        return "an empty file: download it again"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return "a web page (a dead download link?); get the file from another source"
    return next((kind for signature, kind in _KINDS if start.startswith(signature)), "")
