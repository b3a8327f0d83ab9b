"""Options that several commands have. Needs no MindSpore."""

import argparse

from mindspore_coupalign.config import AMP_LEVELS, TARGETS


def add_device_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--device-target", choices=TARGETS, default="auto",
                        help="device to compute on; auto takes an Ascend NPU, else a GPU, else the CPU (default: auto)")


def add_amp_argument(parser: argparse.ArgumentParser):
    parser.add_argument("--amp", choices=AMP_LEVELS,
                        help="precision of a checkpoint: O0 is float32, O1 to O3 are mixed, auto is O0 on CPU and O1 "
                        "elsewhere (default: the checkpoint's train.amp, in which training validated)")
