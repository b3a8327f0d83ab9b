"""Which of the twin's parameters holds which of the project's, by explicit rules from name to name.

PyTorch's attention keeps queries, keys and values in one matrix, so that a place is a name and a range of rows.
"""

import re

import numpy as np
import torch

_ENDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_SWIN = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.q": "attention.q_proj",
         "attn.k": "attention.k_proj", "attn.v": "attention.v_proj", "attn.proj": "attention.o_proj",
         "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_BERT = {"attention.q": "attention.self.query", "attention.k": "attention.self.key",
         "attention.v": "attention.self.value", "attention.proj": "attention.output.dense",
         "norm1": "attention.output.LayerNorm", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
         "norm2": "output.LayerNorm"}
_WPA = {"pixel_query": "pixel_key", "pixel_gate.hidden": "pixel_gate.0", "pixel_gate.out": "pixel_gate.2",
        "word_gate.hidden": "word_gate.0", "word_gate.out": "word_gate.2",
        **{name: name for name in ("pixel_norm", "word_norm", "word_key", "word_value", "pixel_value", "pixel_out",
                                   "word_out")}}
_PWA = {"pixel_query": "query", "gathered": "gathered", "word_key": "key", "word_value": "value", "pixels": "pixels.0",
        "out": "out.0"}
_QUERY = {"norm1": "norms.0", "norm2": "norms.1", "norm3": "norms.2", "mlp.fc1": "ffn.0", "mlp.fc2": "ffn.2",
          "self_attention.proj": "to_queries.out_proj", "cross_attention.proj": "to_pixels.out_proj"}
_PLAIN = {"encoder.backbone.embed.proj": "vision.embeddings.patch_embeddings.projection",
          "encoder.backbone.embed.norm": "vision.embeddings.norm",
          "encoder.text.embed.norm": "text.embeddings.LayerNorm",
          "mask_generator.project": "generator.project", "mask_generator.norm": "generator.norm",
          "mask_generator.embed.fc1": "generator.embed.0", "mask_generator.embed.fc2": "generator.embed.2",
          "alignment.mask_key": "alignment.of_masks", "alignment.sentence_query": "alignment.of_sentence",
          "head.conv": "head",
          "target_head.of_pixels": "target_head.pixels", "target_head.of_sentence": "target_head.words",
          "target_head.hidden": "target_head.hidden", "target_head.decide": "target_head.answer"}
_WHOLE = {"encoder.text.embed.word_embeddings": "text.embeddings.word_embeddings.weight",
          "encoder.text.embed.position_embeddings": "text.embeddings.position_embeddings.weight",
          "encoder.text.embed.token_type_embeddings": "text.embeddings.token_type_embeddings.weight",
          "mask_generator.queries": "generator.queries.weight", "proposal_head.gain": "proposal_head.gain",
          "proposal_head.offset": "proposal_head.offset", "head.guided.steepness": "steepness"}


def place(name: str, model: dict) -> tuple:
    """(twin's name, part, parts): the array of ours is the ``part``-th of so many equal ranges of rows.

    Args:
        model: the section of the configuration; the text's groups and the aligned stages are counted by it.

    Raises:
        KeyError: no rule fits.
    """
    if name in _WHOLE:
        return _WHOLE[name], 0, 1
    body, end = name.rsplit(".", 1)
    fused = re.fullmatch(r"mask_generator\.layers\.(\d+)\.(self|cross)_attention\.([qkv])", body)
    if fused:
        layer, kind, part = fused.groups()
        module = {"self": "to_queries", "cross": "to_pixels"}[kind]
        return f"generator.layers.{layer}.{module}.in_proj_{end}", "qkv".index(part), 3
    if end == "relative_position_bias_table":
        body, table = body.removesuffix(".attn"), "attention.relative_position_bias.relative_position_bias_table"
        return f"{_module(body + '.norm1', model).removesuffix('layernorm_before')}{table}", 0, 1
    return f"{_module(body, model)}.{_ENDS[end]}", 0, 1


def _module(body: str, model: dict) -> str:
    if body in _PLAIN:
        return _PLAIN[body]
    for pattern, make in _RULES:
        match = re.fullmatch(pattern, body)
        if match:
            return make(match.groups(), model)
    raise KeyError(f"no rule for {body}")


def _text_layer(parts, model):
    group, layer, rest = parts
    return f"text.layer.{sum(model['text']['groups'][:int(group)]) + int(layer)}.{_BERT[rest]}"


def _fusion(parts, model):
    slot, rest = parts
    names = _PWA if model["fusion"]["name"] == "pixel_word" else _WPA
    return f"fusion.{sorted(model['fusion']['stages'])[int(slot)] - 1}.{names[rest]}"


_RULES = (
    (r"encoder\.backbone\.stages\.(\d)\.blocks\.(\d+)\.(.+)",
     lambda p, m: f"vision.layers.{p[0]}.blocks.{p[1]}.{_SWIN[p[2]]}"),
    (r"encoder\.backbone\.downsamples\.(\d)\.(norm|reduction)", lambda p, m: f"vision.layers.{p[0]}.downsample.{p[1]}"),
    (r"encoder\.backbone\.outputs\.(\d)", lambda p, m: f"vision.norms.{p[0]}"),
    (r"encoder\.text\.groups\.(\d)\.layers\.(\d+)\.(.+)", _text_layer),
    (r"encoder\.fusion\.(\d)\.gate\.(hidden|out)", lambda p, m: f"gates.{p[0]}.{ {'hidden': 0, 'out': 2}[p[1]]}"),
    (r"encoder\.fusion\.(\d)\.(.+)", _fusion),
    (r"pixel_decoder\.fuse\.(\d)\.(\d)\.(conv|norm)",
     lambda p, m: f"decoder.coarse_to_fine.{2 - int(p[0])}.{p[1]}.{('conv', 'norm').index(p[2])}"),
    (r"mask_generator\.layers\.(\d+)\.(.+)", lambda p, m: f"generator.layers.{p[0]}.{_QUERY[p[1]]}"),
    (r"stage_heads\.(\d)", lambda p, m: f"stage_heads.{p[0]}"),
)


def places(names, twin, model: dict) -> dict:
    """name -> place for all of the project's names; every row of every parameter of the twin is used exactly once.

    Raises:
        AssertionError: a row of the twin is used twice or not at all.
    """
    found = {name: place(name, model) for name in names}
    used = {}
    for name, (theirs, part, parts) in found.items():
        used.setdefault(theirs, []).append((part, parts, name))
    for theirs, uses in used.items():
        parts = uses[0][1]
        assert sorted(use[0] for use in uses) == list(range(parts)), f"{theirs} is filled by {uses}"
    own = {name for name, _ in twin.named_parameters()}
    assert own == set(used), f"not filled: {sorted(own - set(used))}; not there: {sorted(set(used) - own)}"
    return found


def rectifier(cell: str, model: dict) -> str:
    """The twin's Rectifier behind the layer that is the project's ``cell``."""
    body, last = _module(cell, model).rsplit(".", 1)
    known = {"fc1": "activation_fn", "dense": "intermediate_act_fn"}  # transformers'
    return f"{body}.{known[last] if last in known else int(last) + 1}"


def fill(twin, arrays: dict, model: dict):
    """Copy the project's arrays (by its names) into the twin."""
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for name, (theirs, part, parts) in places(arrays, twin, model).items():
            rows = parameters[theirs].chunk(parts)[part]
            array = torch.from_numpy(np.ascontiguousarray(arrays[name]))
            assert rows.numel() == array.numel() and rows.squeeze().shape == array.squeeze().shape, name
            rows.copy_(array.reshape(rows.shape))


def gradients(twin, shapes: dict, model: dict) -> dict:
    """The twin's gradients by the project's names and in its shapes; zeros where nothing flowed."""
    parameters, found = dict(twin.named_parameters()), {}
    for name, (theirs, part, parts) in places(shapes, twin, model).items():
        gradient = parameters[theirs].grad
        gradient = torch.zeros_like(parameters[theirs]) if gradient is None else gradient
        found[name] = gradient.chunk(parts)[part].numpy().reshape(shapes[name])
    return found
