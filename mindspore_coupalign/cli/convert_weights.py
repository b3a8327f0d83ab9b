"""Command ``convert-weights``: pretrained weights of other projects -> a safetensors file under our names.

The file holds name -> float32 array; metadata: ``format``, ``architecture``, ``title``, ``source``, and ``settings``
that the arrays do not show. ``train`` reads it like the foreign file itself (``model.backbone_weights=…``,
``model.text_weights=…``).
"""

import argparse
import json
import os
from pathlib import Path

from mindspore_coupalign import build, runtime
from mindspore_coupalign.config import load_config
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.weights.checkpoint import write_arrays
from mindspore_coupalign.weights.files import FORMAT, read_arrays, weight_file
from mindspore_coupalign.weights.load import load_backbone_weights, load_text_weights, text_weights_settings


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML that describes the network, for example "
                        "configs/refcoco_swin_b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example model.backbone.window=7")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--image", metavar="FILE", help="weights of Swin, ResNet or Darknet-53: .pth, .bin, "
                       ".safetensors, or darknet's .weights and .conv.74")
    which.add_argument("--text", metavar="DIR|FILE", help="weights of BERT: a Hugging Face folder, or its "
                       "model.safetensors or pytorch_model.bin")
    parser.add_argument("--output", required=True, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--names", action="store_true", help="also list every array with its shape")


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if not os.path.isdir(output.parent):
        raise UserError(f"{output}: the folder {output.parent} does not exist")
    config = load_config(args.config, args.overrides)
    runtime.setup("CPU", config.train.seed)
    model, data = config.model, config.data
    if args.image:
        architecture, settings = model.backbone.name, model.backbone.weights_settings()
        backbone = build.build_backbone(model.backbone, (data.image_size, data.image_size))
        loaded = load_backbone_weights(backbone, model.backbone, args.image)
    else:
        architecture, settings = "bert", text_weights_settings(model.text)
        text = build.build_text(config, _vocabulary(args.text, model.text.hidden))
        loaded = load_text_weights(text, model.text, args.text)
    print(loaded.table())
    if args.names:
        for name, array in sorted(loaded.arrays.items()):
            print(f"    {name:<72}{'×'.join(map(str, array.shape))}")
    write_arrays(output, loaded.arrays, {"format": FORMAT, "architecture": architecture, "title": loaded.title,
                                        "source": loaded.path.name, "settings": json.dumps(settings)})
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB); train with model."
          f"{'backbone' if args.image else 'text'}_weights={output}")
    return 0


def _vocabulary(path: str, hidden: int) -> int:
    """Rows of the file's word embeddings: the tokenizer that they fit need not be on this machine.

    2 where they do not fit the network: loading then says so, and a false shape takes no memory.
    """
    arrays, _ = read_arrays(weight_file(path))
    return next((len(array) for name, array in arrays.items() if array.size and array.shape[1:] == (hidden,)
                 and name.endswith(("word_embeddings.weight", "embed.word_embeddings"))), 2)
