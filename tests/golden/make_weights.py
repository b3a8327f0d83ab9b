"""Writes tests/golden/weights: tiny originals with weights in every format, and their features, by PyTorch.

    PYTHONPATH=tests/helpers python tests/golden/make_weights.py

Written with PyTorch 2.13.0 and transformers 5.23.0. tests/weights/test_weights.py reads the files without torch.
"""

from pathlib import Path

import foreign
import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent / "weights"
SWIN = {"size": 96, "embed_dim": 4, "depths": [1, 2, 1, 2], "heads": [1, 2, 2, 4], "window": 2}  # 24, 12, 6 and 3 cells
RESNET = {"width": 16, "depths": [1, 2, 1, 1]}
BERT = {"vocabulary": 12, "hidden": 8, "layers": 3, "heads": 2, "ffn": 16}


def main():
    random = np.random.default_rng(0)
    image = random.normal(size=(1, 3, 96, 96)).astype(np.float32)
    ids, word_mask = random.integers(0, 12, (2, 6), np.int32), np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32)
    features = {"image": image, "ids": ids, "word_mask": word_mask}

    original = foreign.swin(**SWIN)
    state = foreign.published(original, FOLDER / "swin")
    official = foreign.official_swin(state, SWIN["window"])
    foreign.save_torch(FOLDER / "swin_official.pth", official, inside="model")
    foreign.save_torch(FOLDER / "swin_official_stream.pth", official, stream=True, inside="model")
    save_file(foreign.timm_swin(official), FOLDER / "swin_timm.safetensors")
    features |= {f"swin_{i}": x for i, x in enumerate(foreign.swin_features(original, image))}

    original = foreign.resnet(**RESNET)
    state = foreign.published(original, FOLDER / "resnet")
    foreign.save_torch(FOLDER / "resnet_torchvision.pth", foreign.torchvision_resnet(state))
    features |= {f"resnet_{i}": x for i, x in enumerate(foreign.resnet_features(original, image))}

    original = foreign.bert(**BERT)
    state = foreign.published(original, FOLDER / "bert")
    foreign.save_torch(FOLDER / "bert_pytorch_model.bin", {f"bert.{n}": a for n, a in state.items()}, stream=True)
    features["bert"] = foreign.text_features(original, ids, word_mask)
    contiguous = {name: np.ascontiguousarray(array) for name, array in features.items()}  # save_file writes memory
    save_file(contiguous, FOLDER / "features.safetensors")


if __name__ == "__main__":
    main()
