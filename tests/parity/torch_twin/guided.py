"""The fast guided filter (He & Sun, 2015) with a colour guide, by PyTorch's pooling and linear solver.

Shapes: mask (B, 1, h, w); image, the guide (B, 3, H, W), H = r·h; colour statistics (B, h, w, 3, …).
"""

import torch
from torch.nn import functional


def guided_filter(mask, image, side: int = 3, ridge: float = 0.01):
    """The mask (B, 1, H, W) as a linear function of the colours around every cell, averaged over windows."""
    factor = image.shape[2] // mask.shape[2]

    def cells(x):
        return functional.avg_pool2d(x, factor)

    def window(x):
        return functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)

    colours, squares = cells(image), cells((image[:, :, None] * image[:, None]).flatten(1, 2))
    mean, mean_mask = window(colours), window(mask)
    covariance = window(squares).unflatten(1, (3, 3)) - mean[:, :, None] * mean[:, None]
    covariance = covariance.permute(0, 3, 4, 1, 2) + ridge * torch.eye(3).to(image)
    with_mask = (window(colours * mask) - mean * mean_mask).permute(0, 2, 3, 1)
    slope = torch.linalg.solve(covariance, with_mask).permute(0, 3, 1, 2)
    offset = mean_mask - (slope * mean).sum(1, keepdim=True)
    fit = functional.interpolate(window(torch.cat((slope, offset), 1)), image.shape[2:], mode="bilinear",
                                 align_corners=False)
    return (fit[:, :3] * image).sum(1, keepdim=True) + fit[:, 3:]
