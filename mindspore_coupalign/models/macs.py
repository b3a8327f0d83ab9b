"""Multiply-accumulate operations of one sample's forward pass, from the cells' shapes; nothing is computed.

Counted are matrix products and convolutions, as the literature's "FLOPs" of Swin do; norms, softmax, activations,
resizes and gathers are not. P pixels, T word pieces, C and D channels of pixels and words, N mask queries.
"""

import math

from mindspore import nn

from mindspore_coupalign.models import layers, mask_generator, swin
from mindspore_coupalign.models.bert import BertGroup
from mindspore_coupalign.models.cnn import CnnStage, ConvNorm
from mindspore_coupalign.models.coupalign import CoupAlign
from mindspore_coupalign.models.encoder import FusedEncoder
from mindspore_coupalign.models.guided_filter import GuidedFilter, Separable
from mindspore_coupalign.models.lavt import LavtEncoder, PixelWordAttention
from mindspore_coupalign.models.sentence_mask import ExistenceHead, SentenceMaskAlignment
from mindspore_coupalign.models.word_pixel import Gate, WordPixelAlignment


def dense(cell: nn.Dense, rows: int) -> int:
    return rows * cell.in_channels * cell.out_channels


def conv(cell: nn.Conv2d, positions: int) -> int:
    """``positions`` are the output's."""
    return positions * cell.weight.size


def mlp(cell: layers.Mlp, rows: int) -> int:
    return dense(cell.fc1, rows) + dense(cell.fc2, rows)


def attention(cell: layers.Attention, queries: int, keys: int) -> int:
    linear = dense(cell.q, queries) + dense(cell.k, keys) + dense(cell.v, keys) + dense(cell.proj, queries)
    return linear + 2 * queries * keys * cell.q.out_channels


def swin_embed(cell: swin.PatchEmbed, pixels: int) -> int:
    return conv(cell.proj, pixels)


def swin_stage(cell: swin.SwinStage, pixels: int) -> int:
    """Windows hold more cells than there are pixels where the map is padded."""
    total = 0
    for block in cell.blocks:
        attn, rows = block.attn, block.partition.index.size
        total += sum(dense(d, rows) for d in (attn.q, attn.k, attn.v, attn.proj))
        total += 2 * rows * block.area * attn.q.out_channels + mlp(block.mlp, pixels)
    return total


def swin_downsample(cell: swin.PatchMerging, pixels: int) -> int:
    """``pixels`` are the finer stage's."""
    return dense(cell.reduction, pixels // 4)


def cnn_stage(cell: CnnStage) -> int:
    return sum(conv(unit.conv, math.prod(unit.size)) for _, unit in cell.cells_and_names()
               if isinstance(unit, ConvNorm))


def vision_part(cell: nn.Cell, pixels: int) -> int:
    """Of any backbone; ``pixels`` are the stage's, for a downsampling the finer stage's."""
    if isinstance(cell, CnnStage):
        return cnn_stage(cell)
    count = {swin.PatchEmbed: swin_embed, swin.SwinStage: swin_stage, swin.PatchMerging: swin_downsample}
    return 0 if isinstance(cell, nn.Identity) else count[type(cell)](cell, pixels)


def bert_group(cell: BertGroup, words: int) -> int:
    return sum(attention(layer.attention, words, words) + mlp(layer.mlp, words) for layer in cell.layers)


def gate(cell: Gate, rows: int) -> int:
    return dense(cell.w1, rows) + dense(cell.w2, rows)


def word_pixel(cell: WordPixelAlignment, pixels: int, words: int) -> int:
    """The affinity is computed in both directions, and each is used once."""
    linear = sum(dense(d, pixels) for d in (cell.w_v, cell.w_vl, cell.w_ov))
    linear += sum(dense(d, words) for d in (cell.w_l, cell.w_lv, cell.w_ol))
    return linear + 4 * pixels * words * cell.w_v.out_channels + gate(cell.gate_v, pixels) + gate(cell.gate_l, words)


def pixel_word(cell: PixelWordAttention, pixels: int, words: int) -> int:
    linear = sum(dense(d, pixels) for d in (cell.w_q, cell.w_w, cell.w_m, cell.w_o))
    linear += dense(cell.w_k, words) + dense(cell.w_v, words)
    return linear + 2 * pixels * words * cell.w_q.out_channels


def fusion(encoder: FusedEncoder | LavtEncoder, pixels: list, words: int) -> list:
    """The rows of the fusion, as ``parts`` gives them."""
    if isinstance(encoder, LavtEncoder):
        rows = []
        for i, attend in enumerate(encoder.attend):
            gates = [encoder.gates[i]] if i < 3 else []
            count = pixel_word(attend, pixels[i], words) + sum(gate(g, pixels[i]) for g in gates)
            rows.append((f"pixel-word attention {i + 1}", [attend, *gates], count))
        return rows
    return [(f"word-pixel alignment {i + 1}", [encoder.wpa[encoder.slot[i]]],
             word_pixel(encoder.wpa[encoder.slot[i]], pixels[i], words)) for i in range(4) if encoder.aligned[i]]


def pixel_decoder(cell: mask_generator.PixelDecoder, sizes: list) -> int:
    return sum(conv(block.conv, math.prod(sizes[i])) for i, blocks in enumerate(cell.fuse) for block in blocks)


def generator(cell: mask_generator.MaskGenerator, pixels: int) -> int:
    queries = cell.queries.shape[0]
    total = dense(cell.project, pixels) + mlp(cell.embed, queries)
    for layer in cell.layers:
        total += attention(layer.self_attention, queries, queries) + attention(layer.cross_attention, queries, pixels)
        total += mlp(layer.mlp, queries)
    return total


def sentence_mask(cell: SentenceMaskAlignment, pixels: int, queries: int) -> int:
    dim = cell.w_q.out_channels
    return 2 * pixels * queries * dim + dense(cell.w_q, queries) + dense(cell.w_g, 1) + queries * dim


def existence(cell: ExistenceHead, pixels: int) -> int:
    dense_cells = (cell.of_pixels, cell.of_sentence, cell.hidden, cell.decide)
    return pixels * cell.of_pixels.in_channels + sum(dense(part, 1) for part in dense_cells)


def separable(cell: Separable, channels: int) -> int:
    (rows, height), (width, columns) = cell.rows.shape, cell.columns.shape
    return channels * columns * height * (width + rows)


def guided_filter(cell: GuidedFilter) -> int:
    """Colours and their six products are pooled; colours, mask and mask times colours averaged; a and b spread."""
    return (separable(cell.pool, 3) + separable(cell.pool_window, 6) + separable(cell.window, 7)
            + separable(cell.spread_window, 4))


def parts(model: CoupAlign, words: int) -> list[tuple[str, list, int]]:
    """(name, cells, MACs) of each part, in the order of computation; the cells together hold every parameter."""
    encoder, vision = model.encoder, model.encoder.vision
    pixels = [math.prod(size) for size in vision.sizes]
    rows = [("vision stem", [vision.embed], vision_part(vision.embed, pixels[0]))]
    for i in range(4):
        cells, count = [vision.stages[i], vision.outputs[i]], vision_part(vision.stages[i], pixels[i])
        if i:
            down = vision.downsamples[i - 1]
            cells, count = [down, *cells], count + vision_part(down, pixels[i - 1])
        rows.append((f"vision stage {i + 1}", cells, count))
    rows.append(("text embedding", [encoder.text.embed], 0))
    rows += [(f"text group {i + 1}", [group], bert_group(group, words)) for i, group in enumerate(encoder.text.groups)]
    rows += fusion(encoder, pixels, words)
    rows.append(("decoder", [model.decoder], pixel_decoder(model.decoder, vision.sizes)))
    if model.alignment is not None:
        queries = model.generator.queries.shape[0]
        rows.append(("mask generator", [model.generator], generator(model.generator, pixels[model.query_stage])))
        rows.append(("sentence-mask alignment", [model.alignment], sentence_mask(model.alignment, pixels[0], queries)))
    rows.append(("head", [model.head], conv(model.head, pixels[0])))
    if model.existence_head is not None:
        rows.append(("existence head", [model.existence_head], existence(model.existence_head, pixels[0])))
    if model.guided is not None:
        rows.append(("guided filter", [model.guided], guided_filter(model.guided)))
    if len(model.stage_heads):
        rows.append(("stage heads (training)", [model.stage_heads], 0))
    if model.proposal_head is not None:
        rows.append(("proposal head (training)", [model.proposal_head], 0))
    return rows
