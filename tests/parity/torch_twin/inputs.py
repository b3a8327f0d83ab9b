"""The weights and the batch that both sides get; NumPy alone.

Shapes: image (B, 3, H, W); ids, word_mask (B, T) int32; mask (B, 1, H, W) 0/1.
"""

import re

import numpy as np


def random_weights(shapes: dict, seed: int = 0) -> dict:
    """Arrays by name: every parameter matters, biases and norms too, and no feature grows without bound."""
    random, arrays = np.random.default_rng(seed), {}
    lavt = any(".gathered." in name for name in shapes)
    for name, shape in sorted(shapes.items()):
        value = random.standard_normal(shape, np.float32)
        if name.endswith("gamma"):
            value = 1 + 0.1 * value
        elif name.endswith(("embeddings", "table", "queries")):
            value *= 0.5
        elif len(shape) > 1:
            value *= np.prod(shape[1:]) ** -0.5
            if ".text." in name and ".proj." in name:  # twelve layers of random attention make all words one, and what
                value *= 0.3  # LAVT's instance norm leaves of one word is rounding
            if lavt and ".word_key." in name:  # pixels that all read the same words leave LAVT's instance norm
                value *= 4  # rounding alone
        elif "proposal_head" in name or "steepness" in name:
            value = 1.5 + 0.1 * value
        elif re.search(r"fusion\.\d\.out\.bias$", name):  # LAVT normalises after a ReLU: a row of
            # zeros but one would be all rounding
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        arrays[name] = value
    return arrays


def random_batch(config: dict, vocabulary: int, batch: int, background: int = 0) -> tuple:
    """image, ids, word_mask, mask; the first of several sentences has five eighths of ``max_tokens``, the last all.

    Args:
        background: the mask is everything but a square with so many cells of stride 4 at a side; 0: a rectangle.
    """
    size, tokens = config["data"]["image_size"], config["data"]["max_tokens"]
    random = np.random.default_rng(1)
    image = random.standard_normal((batch, 3, size, size), np.float32)
    lengths = np.linspace(tokens * 5 // 8, tokens, batch).astype(int)[:, None]
    word_mask = (np.arange(tokens) < lengths).astype(np.int32)
    ids = random.integers(1, vocabulary, (batch, tokens)).astype(np.int32) * word_mask
    mask = np.full((batch, 1, size, size), background > 0, np.float32)
    for i in range(batch):
        place = size // 8 + 4 * i
        if background:
            mask[i, :, place:place + 4 * background, place:place + 4 * background] = 0
        else:
            mask[i, :, place:size // 2 + 8, size // 4:size // 2 + 16] = 1
    return image, ids, word_mask, mask
