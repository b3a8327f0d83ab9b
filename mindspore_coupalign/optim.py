"""AdamW (Loshchilov & Hutter, 2019), equal to PyTorch's, with small parameters joined into one vector.

A small network has hundreds of tensors of a few hundred values each; on CPU their update kernels cost more than the
network itself when they run one by one. Every state of the optimizer is therefore a tuple (vector, *large): all
parameters of fewer than ``PACK_BELOW`` values joined in order, then the others as they are.

``mindspore.experimental.optim.AdamW`` gives the same numbers from about ten small kernels per parameter; the fused
kernel ``AdamWeightDecay`` is ten times slower than ``Adam``.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindspore_coupalign.checkpoint import check_arrays

PACK_BELOW = 2**17  # values


class Packing:
    """The order of parameters in a packed state (vector, *large)."""

    def __init__(self, small: list, large: list):
        self.params = small + large
        self.small = ParameterTuple(small)
        self.large = ParameterTuple(large)
        ends = np.cumsum([p.size for p in small]).tolist()
        self.slices = [slice(end - p.size, end) for p, end in zip(small, ends, strict=True)]

    def state(self, prefix: str, values: dict | None = None) -> ParameterTuple:
        """A new packed state, zero or from arrays by parameter name."""
        def of(p):
            return np.zeros(p.shape, np.float32) if values is None else values[p.name]
        vector = np.concatenate([of(p).reshape(-1) for p in self.small] or [np.zeros(1, np.float32)])
        return ParameterTuple([Parameter(Tensor(vector), name=f"{prefix}.packed", requires_grad=False)] + [
            Parameter(Tensor(of(p)), name=f"{prefix}.{p.name}", requires_grad=False) for p in self.large])

    def arrays(self, state) -> dict:
        """Parameter name -> array of a packed state."""
        vector = state[0].asnumpy()
        arrays = {p.name: vector[part].reshape(p.shape) for p, part in zip(self.small, self.slices, strict=True)}
        return arrays | {p.name: s.asnumpy() for p, s in zip(self.large, state[1:], strict=True)}

    def load(self, state, arrays: dict, source: str):
        """Fill a packed state from arrays by parameter name.

        Raises:
            UserError: a name is missing or left over, or a shape differs.
        """
        check_arrays({p.name: tuple(p.shape) for p in self.params}, arrays, source)
        for target, filled in zip(state, self.state("filled", arrays), strict=True):
            target.set_data(filled)


class AdamW(nn.Cell):
    """``construct(gradients, lr)`` updates every parameter from packed gradients; lr is a 0-d tensor.

    Args:
        groups: from ``build.parameter_groups``: dicts of params, weight_decay and rate, a factor of lr (default 1).
        below: parameters of fewer values and of rate 1 are joined.
    """

    def __init__(self, groups: list, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
                 below: int = PACK_BELOW):
        super().__init__()
        params = [p for group in groups for p in group["params"]]
        rate = {p.name: group.get("rate", 1.0) for group in groups for p in group["params"]}
        decay = {p.name: rate[p.name] * group["weight_decay"] for group in groups for p in group["params"]}
        alone = [p.size >= below or rate[p.name] != 1 for p in params]
        self.packing = packing = Packing([p for p, is_alone in zip(params, alone, strict=True) if not is_alone],
                                         [p for p, is_alone in zip(params, alone, strict=True) if is_alone])
        self.params = ParameterTuple(packing.params)
        self.small, self.count = packing.small, len(packing.small)
        # slices or a split of hundreds of parts compile for minutes; a gather of constant places does not
        self.places = tuple(Tensor(np.arange(part.start, part.stop, dtype=np.int32).reshape(p.shape))
                            for p, part in zip(packing.small, packing.slices, strict=True))
        self.vector = packing.state("adam_work")[0]
        self.targets = ParameterTuple([self.vector, *packing.large])
        self.first, self.second = packing.state("adam_m"), packing.state("adam_v")
        self.rates = (Tensor(1, ms.float32), *(Tensor(rate[p.name], ms.float32) for p in packing.large))
        self.decays = ()
        if any(decay.values()):
            each = [np.full(p.size, decay[p.name], np.float32) for p in packing.small]
            vector = np.concatenate(each or [np.zeros(1, np.float32)])
            self.decays = (Tensor(vector), *(Tensor(decay[p.name], ms.float32) for p in packing.large))
        self.steps = Parameter(Tensor(0, ms.float32), name="adam_steps")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.adam = ops.Adam()
        self.map = ops.HyperMap()  # a Python loop over hundreds of parameters exceeds the compiler's call depth

    def pack(self, tensors):
        """Tensors in the order of ``params`` -> (vector, *large)."""
        if self.count == 0:
            return (ops.zeros((1,), ms.float32), *tensors)
        return (ops.concat(self.map(_flat, tensors[:self.count])), *tensors[self.count:])

    def construct(self, gradients, lr):
        steps = ops.assign_add(self.steps, Tensor(1, ms.float32))
        power1, power2 = ops.pow(self.beta1, steps), ops.pow(self.beta2, steps)
        eps = self.eps * ops.sqrt(1 - power2)  # the kernel adds epsilon before the bias correction, PyTorch after it
        if self.count > 0:
            ops.assign(self.vector, ops.concat(self.map(_flat, self.small)))
        if self.decays:
            self.map(ops.partial(_decay, lr), self.decays, self.targets)
        self.map(ops.partial(self._update, power1, power2, lr, eps), self.rates, self.targets, self.first, self.second,
                 gradients)
        if self.count > 0:
            self.map(ops.partial(_assign_part, self.vector), self.small, self.places)
        return steps

    def _update(self, power1, power2, lr, eps, rate, parameter, first, second, gradient):
        return self.adam(parameter, first, second, power1, power2, lr * rate, self.beta1, self.beta2, eps, gradient)


def _flat(tensor):
    return tensor.reshape((-1,))


def _decay(lr, decay, parameter):
    return ops.assign(parameter, parameter * (1 - lr * decay))


def _assign_part(vector, parameter, place):
    return ops.assign(parameter, ops.gather(vector, place, 0))
