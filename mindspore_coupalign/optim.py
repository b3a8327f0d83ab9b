"""AdamW (Loshchilov & Hutter, 2019), equal to PyTorch's, as one fused kernel per parameter.

``mindspore.experimental.optim.AdamW`` gives the same numbers from about ten small kernels per parameter, which cost
more than half of a small network's step on CPU.
"""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops


class AdamW(nn.Cell):
    """``construct(gradients, lr)`` updates every parameter; lr is a 0-d tensor, so that it may change freely.

    Args:
        groups: from ``build.parameter_groups``: dicts of params and weight_decay.
    """

    def __init__(self, groups: list, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        super().__init__()
        self.params = ParameterTuple([p for group in groups for p in group["params"]])
        self.decay = tuple(float(group["weight_decay"]) for group in groups for _ in group["params"])
        self.first = self.params.clone("adam_m", init="zeros")
        self.second = self.params.clone("adam_v", init="zeros")
        self.steps = Parameter(Tensor(0, ms.float32), name="adam_steps")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.update = ops.AdamWeightDecay()

    def construct(self, gradients, lr):
        steps = ops.assign_add(self.steps, Tensor(1, ms.float32))
        bias1 = 1 - ops.pow(self.beta1, steps)
        root2 = ops.sqrt(1 - ops.pow(self.beta2, steps))
        # the kernel knows no bias correction: fold it into the rate, epsilon and decay
        rate, eps = lr * root2 / bias1, self.eps * root2
        for i in range(len(self.params)):
            self.update(self.params[i], self.first[i], self.second[i], rate, self.beta1, self.beta2, eps,
                        self.decay[i] * bias1 / root2, gradients[i])
        return steps
