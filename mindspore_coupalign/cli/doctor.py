"""Command ``doctor``: what a machine has and lacks (the package doctor), in one report."""

from mindspore_coupalign.doctor import add_arguments, run

__all__ = ["add_arguments", "run"]
