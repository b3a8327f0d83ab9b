"""Backbones by name; a new one is imported here, or named in COUPALIGN_PARTS."""

from mindspore_coupalign.models.backbones import darknet, resnet, swin  # noqa: F401
