"""AdamW (Loshchilov & Hutter, 2019), equal to PyTorch's, and Muon for matrices, with small parameters joined.

A small network has hundreds of tensors of a few hundred values each; on CPU their update kernels cost more than the
network itself when they run one by one. Every state of the optimizer is therefore a tuple (vector, *large, matrices):
AdamW's parameters of fewer than ``PACK_BELOW`` values joined in order, its others unchanged, and Muon's joined.

``mindspore.experimental.optim.AdamW`` gives the same numbers from about ten small kernels per parameter; the fused
kernel ``AdamWeightDecay`` is ten times slower than ``Adam``.
"""

from itertools import groupby

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindspore_coupalign.mindspore_calls import assign, assign_add, assign_sub, slice_, unstack
from mindspore_coupalign.training.muon import Muon, matrix_shape
from mindspore_coupalign.weights.checkpoint import check_arrays


class FlatParameters:
    """The order of parameters in a packed state (vector, *large, matrices), whose last part exists only with matrices.

    Parameters of the same shape are neighbours in a vector.
    """

    def __init__(self, small: list, large: list, matrices: list = ()):
        small, matrices = (sorted(params, key=lambda p: p.shape) for params in (small, matrices))
        self.params = [*small, *large, *matrices]
        self.small, self.large, self.matrices = (ParameterTuple(params) for params in (small, large, matrices))

    def state(self, prefix: str, values: dict | None = None) -> ParameterTuple:
        """A new packed state, zero or from arrays by parameter name."""
        def of(p):
            return np.zeros(p.shape, np.float32) if values is None else values[p.name]

        parts = {"packed": Tensor(join_arrays(self.small, of))}
        for p in self.large:  # zeros in place: large temporary arrays would fragment the memory
            parts[p.name] = initializer("zeros", p.shape, ms.float32) if values is None else Tensor(values[p.name])
        if len(self.matrices):
            parts["matrices"] = Tensor(join_arrays(self.matrices, of))
        return ParameterTuple([Parameter(data, name=f"{prefix}.{name}", requires_grad=False)
                               for name, data in parts.items()])

    def arrays(self, state) -> dict:
        """Parameter name -> array of a packed state."""
        joined = [(self.small, state[0].asnumpy())]
        if len(self.matrices):
            joined.append((self.matrices, state[-1].asnumpy()))
        arrays = {p.name: vector[part].reshape(p.shape) for params, vector in joined
                  for p, part in zip(params, _slices(params), strict=True)}
        return arrays | {p.name: s.asnumpy() for p, s in zip(self.large, state[1:1 + len(self.large)], strict=True)}

    def load(self, state, arrays: dict, source: str):
        """Fill a packed state from arrays by parameter name.

        Raises:
            UserError: a name is missing or unknown, or a shape differs.
        """
        check_arrays({p.name: tuple(p.shape) for p in self.params}, arrays, source)
        for target, filled in zip(state, self.state("filled", arrays), strict=True):
            target.set_data(filled)


class FlatVector(nn.Cell):
    """The values of parameters as one vector, in the graph; a single zero for no parameters.

    One kernel joins or splits all neighbours of a shape. (One per parameter costs as much as the update itself; slices
    or a split of hundreds of parts take minutes to compile.)
    """

    def __init__(self, params: ParameterTuple):
        super().__init__()
        self.params = params
        self.neighbours = _neighbours(params)
        self.map = ops.HyperMap()  # a Python loop over hundreds of parameters exceeds the compiler's call depth

    def construct(self, tensors):
        """Tensors like the parameters, in one vector."""
        return ops.concat(self.map(_flat, tensors)) if len(tensors) else ops.zeros((1,), ms.float32)

    def read(self):
        """The parameters' values in one vector."""
        stacks = ()
        for _, _, members, _ in self.neighbours:
            stacks += (ops.stack(self.params[members]),)
        return self.construct(stacks)

    def write(self, vector):
        """Set the parameters to their values in a vector."""
        values = ()
        for start, length, _, shape in self.neighbours:
            values += unstack(slice_(vector, (start,), (length,)).reshape(shape))
        if len(values):
            self.map(assign, self.params, values)


def join_arrays(params, of) -> np.ndarray:
    """The arrays ``of`` the parameters in one vector; for no parameters a single zero, which the kernels need."""
    return np.concatenate([of(p).reshape(-1) for p in params] or [np.zeros(1, np.float32)])


def _slices(params) -> list:
    """The part of each parameter in the joined vector."""
    ends = np.cumsum([p.size for p in params]).tolist()
    return [slice(end - p.size, end) for p, end in zip(params, ends, strict=True)]


def _neighbours(params) -> list:
    """(start, length, members, shape of their stack) of each run of parameters of one shape in the joined vector."""
    neighbours, start, first = [], 0, 0
    for shape, run in groupby(params, lambda p: p.shape):
        run = list(run)
        length = sum(p.size for p in run)
        neighbours.append((start, length, slice(first, first + len(run)), (len(run), *shape)))
        start, first = start + length, first + len(run)
    return neighbours


def _flat(tensor):
    return tensor.reshape((-1,))


PACK_BELOW = 2**17  # values


class Optimizer(nn.Cell):
    """``construct(gradients, lr)`` updates every parameter from packed gradients; lr is a 0-d tensor.

    Args:
        groups: from ``setup.parameter_groups``: dicts of params, weight_decay, lr_mult (default 1) and muon
            (default False): updated by Muon, in moves of root mean square lr · lr_mult.
        below: AdamW's parameters of fewer values are joined.
        momentum: of Muon, in Nesterov's form.
    """

    def __init__(self, groups: list, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
                 below: int = PACK_BELOW, momentum: float = 0.95):
        super().__init__(auto_prefix=False)  # else every parameter of the model would be renamed
        mult = {p.name: group.get("lr_mult", 1.0) for group in groups for p in group["params"]}
        decay = {p.name: mult[p.name] * group["weight_decay"] for group in groups for p in group["params"]}
        matrices = [p for group in groups if group.get("muon") for p in group["params"]]
        params = [p for group in groups if not group.get("muon") for p in group["params"]]
        self.flat = flat = FlatParameters([p for p in params if p.size < below],
                                          [p for p in params if p.size >= below], matrices)
        self.params = ParameterTuple(flat.params)
        self.small, self.matrices = FlatVector(flat.small), FlatVector(flat.matrices)
        self.large = slice(len(flat.small), len(flat.small) + len(flat.large))
        without_large = FlatParameters(flat.small, [], flat.matrices)  # those are updated in place
        work = without_large.state("adam_work")
        self.vector, self.joined = work[0], work[-1]
        self.targets = ParameterTuple([self.vector, *flat.large, *([self.joined] if matrices else [])])
        self.adams = slice(0, 1 + len(flat.large))  # AdamW's part of a packed state
        self.first, self.second = flat.state("adam_m"), flat.state("adam_v")
        self.lr_mults = (Tensor(1, ms.float32), *(Tensor(mult[p.name], ms.float32) for p in flat.large))
        self.small_lr_mults = None
        self.moved = ParameterTuple([self.vector, *flat.large])
        if any(mult[p.name] != 1 for p in flat.small):  # the kernel knows one lr: it moves zeros, which are scaled
            self.small_lr_mults = _spread(flat.small, mult)
            self.moves = without_large.state("adam_moves")[0]
            self.moved = ParameterTuple([self.moves, *flat.large])
        self.decays = ()
        if any(decay.values()):
            self.decays = (_spread(flat.small, decay), *(Tensor(decay[p.name], ms.float32) for p in flat.large),
                           *([_spread(flat.matrices, decay)] if matrices else []))
        self.steps = Parameter(Tensor(0, ms.float32), name="adam_steps")
        self.beta1, self.beta2, self.eps, self.momentum = beta1, beta2, eps, momentum
        self.kernel = ops.Adam()
        self.muon = None
        if matrices:
            self.muon = Muon([matrix_shape(p) for p in flat.matrices])
            self.muon_lr_mults = _spread(flat.matrices, mult)
        self.map = ops.HyperMap()  # a Python loop over hundreds of parameters exceeds the compiler's call depth

    def pack(self, tensors):
        """Tensors in the order of ``params`` -> (vector, *large, matrices)."""
        packed = (self.small(tensors[:self.large.start]), *tensors[self.large])
        return packed if self.muon is None else (*packed, self.matrices(tensors[self.large.stop:]))

    def construct(self, gradients, lr):
        steps = assign_add(self.steps, Tensor(1, ms.float32))
        assign(self.vector, self.small.read())
        if self.muon is not None:
            assign(self.joined, self.matrices.read())
        if self.decays:
            self.map(ops.partial(_decay, lr), self.decays, self.targets)
        self._adam(gradients[self.adams], lr, steps)
        if self.muon is not None:
            self._muon(gradients[-1], lr)
        return steps

    def _adam(self, gradients, lr, steps):
        power1, power2 = ops.pow(self.beta1, steps), ops.pow(self.beta2, steps)
        eps = self.eps * ops.sqrt(1 - power2)  # the kernel adds epsilon before the bias correction, PyTorch after it
        if self.small_lr_mults is not None:
            assign(self.moves, ops.zeros_like(self.moves))
        self.map(ops.partial(self._update, power1, power2, lr, eps), self.lr_mults, self.moved,
                 self.first[self.adams], self.second[self.adams], gradients)
        if self.small_lr_mults is not None:
            assign_add(self.vector, self.moves * self.small_lr_mults)
        self.small.write(self.vector)

    def _muon(self, gradient, lr):
        fresh = (1 - self.momentum) * gradient
        average = assign(self.first[-1], self.momentum * self.first[-1] + fresh)
        move = self.muon(self.momentum * average + fresh)
        assign_sub(self.joined, lr * self.muon_lr_mults * move)
        self.matrices.write(self.joined)

    def _update(self, power1, power2, lr, eps, mult, parameter, first, second, gradient):
        return self.kernel(parameter, first, second, power1, power2, lr * mult, self.beta1, self.beta2, eps, gradient)


def _spread(params, values: dict) -> Tensor:
    """A value per parameter, by name, repeated for each value of the joined parameters."""
    return Tensor(join_arrays(params, lambda p: np.full(p.shape, values[p.name], np.float32)))


def _decay(lr, decay, parameter):
    return assign(parameter, parameter * (1 - lr * decay))
