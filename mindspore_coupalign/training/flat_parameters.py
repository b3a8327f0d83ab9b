"""Many small parameters as one vector, for an optimizer whose kernels would cost more than the network one by one."""

from itertools import groupby

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindspore_coupalign.mindspore_calls import assign, slice_, unstack
from mindspore_coupalign.weights.checkpoint import check_arrays


class FlatParameters:
    """The order of parameters in a packed state (vector, *large, matrices); without matrices it has no such part.

    Parameters of a shape are neighbours in a vector.
    """

    def __init__(self, small: list, large: list, matrices: list = ()):
        small, matrices = (sorted(params, key=lambda p: p.shape) for params in (small, matrices))
        self.params = [*small, *large, *matrices]
        self.small, self.large, self.matrices = (ParameterTuple(params) for params in (small, large, matrices))

    def state(self, prefix: str, values: dict | None = None) -> ParameterTuple:
        """A new packed state, zero or from arrays by parameter name."""
        def alone(p):  # zeros in place: large arrays on the way would leave holes as large as the network
            return initializer("zeros", p.shape, ms.float32) if values is None else Tensor(values[p.name])

        def of(p):
            return np.zeros(p.shape, np.float32) if values is None else values[p.name]

        parts = {"packed": Tensor(join_arrays(self.small, of))} | {p.name: alone(p) for p in self.large}
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
            UserError: a name is missing or left over, or a shape differs.
        """
        check_arrays({p.name: tuple(p.shape) for p in self.params}, arrays, source)
        for target, filled in zip(state, self.state("filled", arrays), strict=True):
            target.set_data(filled)


class FlatVector(nn.Cell):
    """The values of parameters as one vector, in the graph; a single zero for no parameters.

    One kernel takes the values of all neighbours of a shape together or apart. (One for each parameter costs as much as
    the update itself; slices or a split of hundreds of parts compile for minutes.)
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
        """Give the parameters their values in a vector."""
        values = ()
        for start, length, _, shape in self.neighbours:
            values += unstack(slice_(vector, (start,), (length,)).reshape(shape))
        if len(values):
            self.map(assign, self.params, values)


def join_arrays(params, of) -> np.ndarray:
    """The arrays ``of`` the parameters in one vector; a single zero for none, which the kernels need."""
    return np.concatenate([of(p).reshape(-1) for p in params] or [np.zeros(1, np.float32)])


def _slices(params) -> list:
    """The part of each parameter in the joined vector."""
    ends = np.cumsum([p.size for p in params]).tolist()
    return [slice(end - p.size, end) for p, end in zip(params, ends, strict=True)]


def _neighbours(params) -> list:
    """(start, length, members, shape of their stack) of each run of parameters of one shape in the joined vector."""
    found, start, first = [], 0, 0
    for shape, run in groupby(params, lambda p: p.shape):
        run = list(run)
        length = sum(p.size for p in run)
        found.append((start, length, slice(first, first + len(run)), (len(run), *shape)))
        start, first = start + length, first + len(run)
    return found


def _flat(tensor):
    return tensor.reshape((-1,))
