"""The whole network: encoders with fusion, decoder, mask generator, sentence-mask alignment, head.

Shapes: image (B, 3, H, W); ids, word_mask (B, T); S_i (B, P_i, C_i); Y (B, C_d, H/4, W/4); Q (B, N, C_d);
Z (B, P_1, N); a (B, N).
"""

import torch
from torch import nn
from torch.nn import functional

from torch_twin.encoders import Bert, Swin
from torch_twin.fusion import PixelWordAttention, WordPixelAlignment
from torch_twin.guided import guided_filter
from torch_twin.layers import Gate, Perceptron, Rectifier, sine_positions, to_map


def conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                         nn.GroupNorm(min(32, outputs // 8), outputs), Rectifier())


class Decoder(nn.Module):
    """Top-down: upsample, put the next finer stage behind, two convolutions."""

    def __init__(self, channels: list, dim: int):
        super().__init__()
        self.coarse_to_fine = nn.ModuleList(
            nn.Sequential(conv_norm_relu(coarser + channels[i], dim), conv_norm_relu(dim, dim))
            for i, coarser in ((2, channels[3]), (1, dim), (0, dim)))

    def forward(self, stages: list):
        y = to_map(stages[3])
        for fuse, stage in zip(self.coarse_to_fine, stages[2::-1], strict=True):
            finer = to_map(stage)
            y = functional.interpolate(y, finer.shape[2:], mode="bilinear", align_corners=False)
            y = fuse(torch.cat((y, finer), 1))
        return y


class QueryLayer(nn.Module):
    """A pre-norm transformer decoder layer: self-attention, cross-attention, feed-forward."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.to_queries = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.to_pixels = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ffn = Perceptron(dim, ffn)

    def forward(self, q, keys, values):
        x = self.norms[0](q)
        q = q + self.to_queries(x, x, x, need_weights=False)[0]
        q = q + self.to_pixels(self.norms[1](q), keys, values, need_weights=False)[0]
        return q + self.ffn(self.norms[2](q))


class MaskGenerator(nn.Module):
    """N learned queries read one stage and become mask embeddings; the keys carry sine positions."""

    def __init__(self, channels: int, side: int, model: dict):
        super().__init__()
        dim = model["decoder"]["dim"]
        self.queries = nn.Embedding(model["queries"], dim)
        self.project, self.norm = nn.Linear(channels, dim), nn.LayerNorm(dim)
        self.layers = nn.ModuleList(QueryLayer(dim, model["query_heads"], model["query_ffn"])
                                    for _ in range(model["query_layers"]))
        self.embed = Perceptron(dim, dim)
        self.positions = sine_positions(side, dim)

    def forward(self, stage):
        values = self.project(stage)
        keys = values + self.positions.to(values)
        q = self.queries.weight.expand(len(stage), -1, -1)
        for layer in self.layers:
            q = layer(q, keys, values)
        return self.embed(self.norm(q))


class SentenceMaskAlignment(nn.Module):
    """Z = Y Q^T / sqrt(C_d); a = softmax_N(<Q W_q, L_g W_g> / sqrt(C_d)); Y~ = softmax_N(Z) (a * Q)."""

    def __init__(self, dim: int, word_dim: int):
        super().__init__()
        self.of_masks, self.of_sentence = nn.Linear(dim, dim), nn.Linear(word_dim, dim)

    def forward(self, y, q, sentence):
        scale = y.shape[1] ** -0.5
        weights = torch.einsum("bnd,bd->bn", self.of_masks(q), self.of_sentence(sentence)).mul(scale).softmax(1)
        proposals = torch.einsum("bdp,bnd->bpn", y.flatten(2), q) * scale
        aligned = torch.einsum("bpn,bnd->bdp", proposals.softmax(2), weights[:, :, None] * q)
        return aligned.reshape(y.shape), proposals, weights


class TargetHead(nn.Module):
    """f = Σ softmax(m)_p x_p; w2 relu(W1 [(f W_f) (L_g W_s), f, max m, mean σ(m)]), of inputs without a gradient."""

    def __init__(self, dim: int, word_dim: int):
        super().__init__()
        self.pixels, self.words = nn.Linear(2 * dim, dim), nn.Linear(word_dim, dim)
        self.hidden, self.answer = nn.Linear(3 * dim + 2, dim), nn.Linear(dim, 1)

    def forward(self, pixels, coarse, sentence):
        pixels, sentence, m = pixels.detach(), sentence.detach(), coarse.detach().flatten(1)
        f = torch.einsum("bp,bcp->bc", m.softmax(1), pixels.flatten(2))
        parts = (self.pixels(f) * self.words(sentence), f, m.amax(1, True), m.sigmoid().mean(1, True))
        return self.answer(self.hidden(torch.cat(parts, 1)).relu())[:, 0]


class Twin(nn.Module):
    """``forward`` gives a dict of every intermediate by name, ``logits`` (B, 1, H, W) among them.

    Args:
        config: the project's resolved configuration as nested dicts (``config_to_dict``), model.backbone.name swin.
        vocabulary: rows of BERT's table.
        attention: transformers' implementation for the encoders, sdpa or eager.
    """

    def __init__(self, config: dict, vocabulary: int, attention: str = "sdpa"):
        super().__init__()
        model, size = config["model"], config["data"]["image_size"]
        dim, words = model["decoder"]["dim"], model["text"]["hidden"]
        self.lavt = model["fusion"]["name"] == "pixel_word"
        self.vision = Swin(model["backbone"], size, attention)
        self.text = Bert(model["text"], vocabulary, attention)
        channels = self.vision.channels
        if self.lavt:
            self.fusion = nn.ModuleDict({str(i): PixelWordAttention(channels[i], words) for i in range(4)})
            self.gates = nn.ModuleList(Gate(c, True) for c in channels[:3])
        else:
            self.fusion = nn.ModuleDict({
                str(i - 1): WordPixelAlignment(channels[i - 1], words, model["fusion"]["heads"][i - 1])
                for i in model["fusion"]["stages"]})
        self.decoder = Decoder(channels, dim)
        self.stage_read = model["query_stage"] - 1
        self.generator = self.alignment = None
        if model["sentence_mask"] and not self.lavt:
            self.generator = MaskGenerator(channels[self.stage_read], self.vision.sides[self.stage_read], model)
            self.alignment = SentenceMaskAlignment(dim, words)
        self.upsample = model["head"]["upsample"]
        self.head = nn.Conv2d(dim if self.alignment is None else 2 * dim, 1, 1)
        self.target_head = TargetHead(dim, words) if model["no_target"] else None
        self.steepness = nn.Parameter(torch.ones(1)) if self.upsample == "guided" else None
        self.stage_heads = nn.ModuleList(nn.Linear(c, 1) for c in channels[:2] if model["stage_heads"])
        self.proposal_head = nn.ParameterDict({name: torch.ones(1) for name in ("gain", "offset")
                                               if model["proposal_head"]})

    def forward(self, image, ids, word_mask) -> dict:
        found = {}
        stages, words = (self._lavt if self.lavt else self._coupalign)(image, ids, word_mask, found)
        y = found["Y"] = self.decoder(stages)
        pixels = y
        if self.alignment is not None:
            q = found["queries"] = self.generator(stages[self.stage_read])
            aligned, proposals, weights = self.alignment(y, q, words[:, 0])
            found |= {"proposals": proposals, "weights": weights, "aligned": aligned.flatten(2).transpose(1, 2)}
            if self.proposal_head:
                mask = torch.einsum("bpn,bn->bp", proposals, weights)
                head = self.proposal_head
                found["proposal_logits"] = (head["gain"] * mask + head["offset"])[:, :, None]
            pixels = torch.cat((y, aligned), 1)
        found["coarse"] = self.head(pixels)
        if self.target_head is not None:
            found["exists"] = self.target_head(pixels, found["coarse"], words[:, 0])
        found["logits"] = self._to_input_size(found["coarse"], image)
        for i, head in enumerate(self.stage_heads):
            found[f"stage_logits_{i + 1}"] = head(stages[i])
        return found

    def _coupalign(self, image, ids, word_mask, found):
        v, words = self.vision.embed(image), self.text.embed(ids)
        found |= {"patches": v, "word_embeddings": words}
        stages = []
        for i in range(4):
            v = found[f"blocks_{i + 1}"] = self.vision.stage(i, v)
            words = found[f"group_{i + 1}"] = self.text.group(i, words, word_mask)
            if str(i) in self.fusion:
                v, words, attention = self.fusion[str(i)](v, words, word_mask)
                found |= {f"fused_{i + 1}": v, f"words_{i + 1}": words, f"attention_{i + 1}": attention}
            stages.append(self.vision.output(i, v))
            found[f"stage_{i + 1}"] = stages[-1]
            if i < 3:
                v = found[f"down_{i + 1}"] = self.vision.downsample(i, v)
        return stages, words

    def _lavt(self, image, ids, word_mask, found):
        v, words = self.vision.embed(image), self.text.embed(ids)
        found |= {"patches": v, "word_embeddings": words}
        for i in range(4):
            words = found[f"group_{i + 1}"] = self.text.group(i, words, word_mask)
        stages = []
        for i in range(4):
            v = found[f"blocks_{i + 1}"] = self.vision.stage(i, v)
            fused, attention = self.fusion[str(i)](v, words, word_mask)
            found |= {f"fused_{i + 1}": fused, f"attention_{i + 1}": attention}
            stages.append(self.vision.output(i, fused))
            found[f"stage_{i + 1}"] = stages[-1]
            if i < 3:
                v = found[f"down_{i + 1}"] = self.vision.downsample(i, self.gates[i](fused) * fused + v)
        return stages, words

    def _to_input_size(self, coarse, image):
        if self.upsample == "guided":
            return self.steepness * guided_filter(coarse.sigmoid() - 0.5, image)
        return functional.interpolate(coarse, image.shape[2:], mode="bilinear", align_corners=False)
