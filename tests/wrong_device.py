"""A device that computes something else than the CPU, for test_check_device.py: device_check/computed.py, but at O1 the
third stage is a fifth too large, and at O2 the process is killed before it trains."""

import os
import signal
import sys

from mindspore import nn

from mindspore_coupalign.device_check import computed


class TooLarge(nn.Cell):
    def __init__(self, inner):
        super().__init__(auto_prefix=False)
        self.inner = inner

    def construct(self, x):
        return self.inner(x) * 1.2


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    amp, set_precision = sys.argv[-1], computed.set_precision

    def wrong(model, precision):
        set_precision(model, precision)
        if amp == "O1":
            names = [(parameter, parameter.name) for parameter in model.get_parameters()]
            model.encoder.vision.outputs[2] = TooLarge(model.encoder.vision.outputs[2])
            for parameter, name in names:  # which the list has changed
                parameter.name = name

    computed.set_precision = wrong
    if amp == "O2":
        computed.training = killed
    computed.main(*sys.argv[1:])
