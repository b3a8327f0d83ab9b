"""Fusions of pixels and words by name; a new one is imported here, or named in COUPALIGN_PARTS."""

from mindspore_coupalign.models.fusion import pixel_word, word_pixel  # noqa: F401
