"""The client of docs/deployment.md, run as printed there."""

import os
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT, SENTENCES
from PIL import Image

from mindspore_coupalign.inference import sidecar
from mindspore_coupalign.inference.model import Model

FENCE = re.compile(r"```python client\n(.*?)```", re.S)


def client_of_the_page() -> dict:
    names = {}
    code = FENCE.search((ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"))[1]
    exec(compile(code, "docs/deployment.md", "exec"), names)
    return names


@pytest.mark.parametrize("uint8, head", [(False, False), (True, True)])
def test_the_client_prepares_and_reads_back_as_predict_does(make_model, picture, tmp_path, uint8, head):
    """Images that shrink, grow, or do either in one dimension; sentences of any length; bit for bit."""
    from tiny_network import tiny_config

    more = ("model.no_target=true", "eval.target_threshold=0.3", "eval.min_pixels=3") if head else ()
    config, taken = tiny_config("eval.threshold=0.6", *more), []
    names = client_of_the_page()
    facts = sidecar.describe("onnx", config, make_model()._tokenizer, uint8=uint8)
    (tmp_path / "a.onnx").write_bytes(b"")
    sidecar.write(tmp_path / "a.onnx", facts)

    def network(image, ids, word_mask):
        taken.append((image, ids, word_mask))
        pixels = image.transpose(0, 3, 1, 2).astype(np.float32) if uint8 else image
        logits = (pixels[:, :1] - pixels[:, 2:] + ids.sum(1)[:, None, None, None] % 5 - 2).astype(np.float32)
        return (logits, (ids.sum(1) % 3 - 1.5).astype(np.float32)) if head else (logits,)

    names["with_onnxruntime"] = lambda graph: network
    client = names["Client"](str(tmp_path / "a.onnx"))
    model = Model.from_graph(network, sidecar.read(tmp_path / "a.onnx", "onnx"), "a.onnx")
    sentences = [*SENTENCES, "red", "the red circle " * 9]
    random = np.random.default_rng(0)
    for h, w in ((60, 90), (200, 150), (64, 64), (20, 300), (300, 20), (1, 1), (64, 65)):
        path = tmp_path / f"{h}x{w}.png"
        Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)).save(path)
        masks, found = client.masks(str(path), sentences), model.predict(path, sentences)
        for ours, theirs in zip(*taken[-2:], strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        for mask, expected in zip(masks, found, strict=True):
            np.testing.assert_array_equal(mask, expected.mask)


def test_the_client_with_mindspore(exported, picture, tmp_path, tiny_restored):
    """From the exported MINDIR to the masks."""
    for file in exported[0].parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    client = client_of_the_page()["Client"](os.fspath(tmp_path / "model.mindir"))
    masks = client.masks(str(picture.path), list(SENTENCES))
    for mask, sentence in zip(masks, SENTENCES, strict=True):
        np.testing.assert_array_equal(mask, tiny_restored.predictor.predict(picture.rgb, sentence)[0].mask)
