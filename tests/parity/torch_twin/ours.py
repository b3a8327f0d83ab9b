"""The project's side of the comparison: intermediates, losses and gradients as NumPy arrays by the twin's names.

In PyNative, hooks on the cells see every intermediate; graph mode gives losses, gradients and what ``outputs`` returns.
"""

import re

import mindspore as ms
from mindspore import ops

from mindspore_coupalign import build
from mindspore_coupalign.training import setup
from mindspore_coupalign.training.objective import LOSSES
from torch_twin.inputs import random_weights


def built(config, vocabulary: int, seed: int = 0):
    """(objective of a training step, its weights by name), random drops off."""
    model = build.build_model(config, vocabulary)
    weights = random_weights({p.name: p.shape for p in model.get_parameters()}, seed)
    for parameter in model.get_parameters():
        parameter.set_data(ms.Tensor(weights[parameter.name]))
    return setup.build_train_step(model, config).objective.set_train(False), weights


# Behind them is a ReLU: gates, LAVT's, the decoder's, the mask generator's
_BEFORE_RELU = (r".*gate\.hidden|.*\.fusion\.\d\.(pixels|out)|pixel_decoder\..*\.norm|mask_generator\..*\.fc1")


def sides(model, config) -> tuple:
    """(found, hooks): the next forward pass in PyNative fills in where each ReLU's input is positive, by cell."""
    found, hooks = {}, []
    pattern = _BEFORE_RELU
    for part, section in (("backbone", config.model.backbone), ("text", config.model.text)):
        pattern += rf"|encoder\.{part}\..*\.fc1" if section.activation == "relu" else ""

    def watch(name, cell):
        def hook(_cell, _inputs, output):
            found[name] = output.asnumpy() > 0
        hooks.append(cell.register_forward_hook(hook))

    for name, cell in model.cells_and_names():
        if re.fullmatch(pattern, name):
            watch(name, cell)
    return found, hooks


def intermediates(model) -> tuple:  # noqa: C901 - a list of cells, each with its name
    """(found, hooks): the next forward pass in PyNative fills in every intermediate by the twin's name for it."""
    found, hooks = {}, []

    def watch(cell, *names):
        def hook(_cell, _inputs, outputs):
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for name, output in zip(names, outputs, strict=True):
                if name:
                    found[name] = output.asnumpy()
        hooks.append(cell.register_forward_hook(hook))

    encoder = model.encoder
    watch(encoder.backbone.embed, "patches")
    watch(encoder.text.embed, "word_embeddings")
    for i in range(4):
        watch(encoder.backbone.stages[i], f"blocks_{i + 1}")
        watch(encoder.text.groups[i], f"group_{i + 1}")
        watch(encoder.backbone.outputs[i], f"stage_{i + 1}")
        if encoder.fused[i]:
            words = "" if encoder.text_first else f"words_{i + 1}"
            watch(encoder.fusion[encoder.slot[i]], "", words, f"fused_{i + 1}", f"attention_{i + 1}")
        if i < 3:
            watch(encoder.backbone.downsamples[i], f"down_{i + 1}")
    watch(model.pixel_decoder, "Y")
    watch(model.head, "coarse", "logits")
    if model.alignment is not None:
        watch(model.mask_generator, "queries")
        watch(model.alignment, "aligned", "proposals", "weights")
    if model.proposal_head is not None:
        watch(model.proposal_head, "proposal_logits")
    if model.target_head is not None:
        watch(model.target_head, "exists")
    for i, head in enumerate(model.stage_heads):
        watch(head, f"stage_logits_{i + 1}")
    return found, hooks


def losses_and_gradients(objective, batch: tuple) -> tuple:
    """(losses by name, gradients by parameter name) in the mode that is set; batch (image, ids, word_mask, mask)."""
    parameters = ms.ParameterTuple(objective.trainable_params())

    def forward(image, ids, word_mask, mask):
        values = objective(image, ids, word_mask, mask)
        return values[0], ops.stack(values)

    gradient = ms.value_and_grad(forward, None, parameters, has_aux=True)

    @ms.jit
    def step(image, ids, word_mask, mask):
        return gradient(image, ids, word_mask, mask)

    (_, values), gradients = step(*map(ms.Tensor, batch))
    values = dict(zip(LOSSES, map(float, values.asnumpy()), strict=True))
    return values, {p.name: g.asnumpy() for p, g in zip(parameters, gradients, strict=True)}
