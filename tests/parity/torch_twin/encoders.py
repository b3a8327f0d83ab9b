"""transformers' Swin and BERT, run layer group by layer group so that fusion can be put between.

Shapes: image (B, 3, H, W); pixels of stage i (B, P_i, C_i), P_i = h_i · w_i; ids, word_mask (B, T); words (B, T, D).
"""

import torch
import transformers
from torch import nn
from transformers.models.swin.modeling_swin import SwinRelativePositionBias

from torch_twin.layers import Rectifier, sine_positions


class Swin(nn.Module):
    """``embed``, ``stage(i)`` and ``downsample(i)`` of transformers' SwinModel; ``output(i)`` normalises a stage.

    As in the official classifier, one window covers a map that is no larger than it, and its table of biases has that
    map's size (transformers shrinks the window, but not the table).
    """

    def __init__(self, image: dict, size: int, attention: str):
        super().__init__()
        config = transformers.SwinConfig(
            image_size=size, embed_dim=image["embed_dim"], depths=list(image["depths"]), num_heads=list(image["heads"]),
            window_size=image["window"], mlp_ratio=image["mlp_ratio"], hidden_act=image["activation"],
            drop_path_rate=image["drop_path"], attn_implementation=attention)
        model = transformers.SwinModel(config, add_pooling_layer=False)
        self.embeddings, self.layers = model.embeddings, model.encoder.layers
        self.sides = [size // 2 ** (i + 2) for i in range(4)]
        self.channels = [image["embed_dim"] * 2**i for i in range(4)]
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels)
        for i, side in enumerate(self.sides):
            for block in self.layers[i].blocks if side < image["window"] else ():
                block.attention.relative_position_bias = SwinRelativePositionBias(image["heads"][i], (side, side))
        for block in (b for layer in self.layers for b in layer.blocks if image["activation"] == "relu"):
            block.mlp.activation_fn = Rectifier()
        self.positions = sine_positions(self.sides[0], self.channels[0]) if image["absolute_position"] else None

    def embed(self, image):
        x = self.embeddings(image)[0]
        return x if self.positions is None else x + self.positions.to(x)

    def stage(self, i: int, x):
        for block in self.layers[i].blocks:
            x = block(x, (self.sides[i], self.sides[i]))[0]
        return x

    def downsample(self, i: int, x):
        return self.layers[i].downsample(x, (self.sides[i], self.sides[i]))

    def output(self, i: int, x):
        return self.norms[i](x)


class Bert(nn.Module):
    """``embed`` and ``group(i)`` of transformers' BertModel, its layers cut into four consecutive groups."""

    def __init__(self, text: dict, vocabulary: int, attention: str):
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=vocabulary, hidden_size=text["hidden"], num_hidden_layers=sum(text["groups"]),
            num_attention_heads=text["heads"], intermediate_size=text["ffn"], hidden_act=text["activation"],
            max_position_embeddings=text["max_positions"], hidden_dropout_prob=text["dropout"],
            attention_probs_dropout_prob=text["dropout"], attn_implementation=attention)
        model = transformers.BertModel(config, add_pooling_layer=False)
        self.embeddings, self.layer, self.groups = model.embeddings, model.encoder.layer, text["groups"]
        for layer in self.layer if text["activation"] == "relu" else ():
            layer.intermediate.intermediate_act_fn = Rectifier()

    def embed(self, ids):
        return self.embeddings(ids)

    def group(self, i: int, words, word_mask):
        bias = words.new_zeros(len(words), 1, 1, words.shape[1])
        bias = bias.masked_fill(word_mask[:, None, None, :] == 0, torch.finfo(words.dtype).min)
        first = sum(self.groups[:i])
        for layer in self.layer[first:first + self.groups[i]]:
            words = layer(words, bias)
        return words
