"""Multiply-accumulates of the twin as PyTorch counts them, for one sample; nothing is computed."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torch_twin.network import Twin


def count(config: dict, vocabulary: int) -> int:
    """Of the forward pass; attention in plain products, since the counter does not know every fused kernel."""
    size, tokens = config["data"]["image_size"], config["data"]["max_tokens"]
    with torch.device("meta"):
        twin = Twin(config, vocabulary).eval()
        words = torch.zeros(1, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            twin(torch.zeros(1, 3, size, size), words, words)
    return counter.get_total_flops() // 2
