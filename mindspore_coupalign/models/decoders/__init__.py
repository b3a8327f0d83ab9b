"""Pixel decoders by name; a new one is imported here, or named in COUPALIGN_PARTS."""

from mindspore_coupalign.models.decoders import top_down  # noqa: F401
