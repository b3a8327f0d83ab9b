"""A device that computes something else than the CPU, for test_check_device.py: device_check/run_case.py, but at O1 the
third stage is a fifth too large, and the process is killed before it trains."""

import os
import signal
import sys

from mindspore import nn

from mindspore_coupalign.device_check import run_case


class TooLarge(nn.Cell):
    def __init__(self, inner):
        super().__init__(auto_prefix=False)
        self.inner = inner

    def construct(self, x):
        return self.inner(x) * 1.2


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(model, precision, set_precision=run_case.set_precision):
    set_precision(model, precision)
    names = [(parameter, parameter.name) for parameter in model.get_parameters()]
    model.encoder.backbone.outputs[2] = TooLarge(model.encoder.backbone.outputs[2])
    for parameter, name in names:  # which the list has changed
        parameter.name = name


if __name__ == "__main__":
    if sys.argv[-1] != "O0":
        run_case.set_precision, run_case.training = wrong, killed
    run_case.main(*sys.argv[1:])
