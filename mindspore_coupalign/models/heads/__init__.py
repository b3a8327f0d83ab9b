"""Mask heads by name; a new one is imported here, or named in COUPALIGN_PARTS."""

from mindspore_coupalign.models.heads import linear  # noqa: F401
