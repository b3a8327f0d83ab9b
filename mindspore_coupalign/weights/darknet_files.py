"""Reading darknet's own weight files: ``darknet53.weights``, ``darknet53.conv.74``, ``yolov3.weights``.

Format (Redmon, https://pjreddie.com/darknet): int32 major, minor, revision; images seen, int64 from version 0.2 on,
else int32; then little-endian float32 without names: for each convolution with batch norm, in order of computation,
biases, scales, means, variances (each Cout) and the kernel (Cout, Cin, k, k). All three files begin with Darknet-53's
52 convolutions.
"""

from pathlib import Path

import numpy as np

from mindspore_coupalign.errors import UserError

_EPS = 1e-5  # of our batch norm


def read_darknet_file(path: str | Path, kernels: dict) -> tuple[dict, int]:
    """(arrays by our names, count of values behind them).

    Darknet divides by sqrt(variance) + 1e-6, our batch norm by sqrt(variance + 1e-5): the scales take up the ratio, so
    that both are equal.

    Args:
        kernels: name of each ConvNorm in order of computation -> shape of its kernel.

    Raises:
        UserError: missing or truncated file, or one of another network.
    """
    path = Path(path)
    wanted = sum(4 * shape[0] + int(np.prod(shape)) for shape in kernels.values())
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(20)
            major, minor = np.frombuffer(header[:8], "<i4").tolist() if len(header) == 20 else (-1, 0)
            start = 20 if major * 10 + minor >= 2 else 16
            file.seek(start)
            values = np.frombuffer(file.read(4 * wanted), "<f4" if (size - start) % 4 == 0 else "u1")
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if not 0 <= major <= 1 or len(values) < wanted or values.dtype != np.float32:
        raise UserError(f"{path}: not a complete darknet file for this backbone ({size} bytes, its "
                        f"{len(kernels)} convolutions take {4 * wanted + 20}); download it again, or check "
                        "model.backbone.depths")
    arrays: dict[str, np.ndarray] = {}
    place = 0
    for name, shape in kernels.items():
        parts = []
        for part in ("beta", "gamma", "moving_mean", "moving_variance"):
            parts.append((f"{name}.norm.{part}", values[place:place + shape[0]]))
            place += shape[0]
        count = int(np.prod(shape))
        parts.append((f"{name}.conv.weight", values[place:place + count].reshape(shape)))
        place += count
        arrays |= parts
        variance = arrays[f"{name}.norm.moving_variance"].astype(np.float64)
        if not all(np.isfinite(array).all() for _, array in parts) or variance.min() < 0:
            raise UserError(f"{path}: the values at {name} are no batch norm's; the file is damaged or of another "
                            "network than Darknet-53")
        scale = np.sqrt(variance + _EPS) / (np.sqrt(variance) + 1e-6)
        arrays[f"{name}.norm.gamma"] = (arrays[f"{name}.norm.gamma"] * scale).astype(np.float32)
    return arrays, (size - start) // 4 - wanted
