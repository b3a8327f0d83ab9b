"""AdamW (Loshchilov & Hutter, 2019), equal to PyTorch's, as one fused kernel per parameter.

``mindspore.experimental.optim.AdamW`` gives the same numbers from about ten small kernels per parameter, which cost
more than half of a small network's step on CPU; the fused kernel ``AdamWeightDecay`` is ten times slower than ``Adam``.
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
        decayed = [(p, group["weight_decay"]) for group in groups if group["weight_decay"] > 0 for p in group["params"]]
        self.decayed = ParameterTuple([p for p, _ in decayed])
        self.decays = tuple(Tensor(decay, ms.float32) for _, decay in decayed)
        self.first = self.params.clone("adam_m", init="zeros")
        self.second = self.params.clone("adam_v", init="zeros")
        self.steps = Parameter(Tensor(0, ms.float32), name="adam_steps")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.adam = ops.Adam()
        self.map = ops.HyperMap()  # a Python loop over hundreds of parameters exceeds the compiler's call depth

    def construct(self, gradients, lr):
        steps = ops.assign_add(self.steps, Tensor(1, ms.float32))
        power1, power2 = ops.pow(self.beta1, steps), ops.pow(self.beta2, steps)
        eps = self.eps * ops.sqrt(1 - power2)  # the kernel adds epsilon before the bias correction, PyTorch after it
        if self.decays:
            self.map(ops.partial(self._decay, lr), self.decays, self.decayed)
        self.map(ops.partial(self._update, power1, power2, lr, eps), self.params, self.first, self.second, gradients)
        return steps

    def _decay(self, lr, decay, parameter):
        return ops.assign(parameter, parameter * (1 - lr * decay))

    def _update(self, power1, power2, lr, eps, parameter, first, second, gradient):
        return self.adam(parameter, first, second, power1, power2, lr, self.beta1, self.beta2, eps, gradient)
