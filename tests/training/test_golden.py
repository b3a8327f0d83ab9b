"""Files and numbers of earlier versions: a checkpoint of the first release, and a training's losses.

``golden/first_release.safetensors`` is a training state that version 0.1.0 wrote after six steps (Swin, word-pixel
alignment at stages 1 and 2, guided filter, averaged weights, Muon), ``first_release.json`` that version's logits.
``golden/losses.json`` holds the losses of 20 steps; bit-identical on one machine, other processors round otherwise.
Write it anew with ``PYTHONPATH=.:tests/helpers python tests/training/test_golden.py`` where a change of numbers is
meant, and say so in the CHANGELOG.
"""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from tiny_network import pynative  # which also chooses the device; later than the first computation is too late

GOLDEN = Path(__file__).parents[1] / "golden"
STATE = GOLDEN / "first_release.safetensors"
STEPS = 20


def test_a_checkpoint_of_the_first_release_computes_what_it_did():
    from mindspore_coupalign import build
    from mindspore_coupalign.weights.checkpoint import load_checkpoint

    known = json.loads((GOLDEN / "first_release.json").read_text())
    model, tokenizer = build.restore_model(load_checkpoint(STATE))
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    with pynative():
        logits = model(ms.Tensor(image), *map(ms.Tensor, tokenizer([known["sentence"]]))).asnumpy()[0, 0]
    np.testing.assert_allclose(logits[::8, ::8], known["logits"], atol=2e-4 * np.abs(logits).max())


def losses(folder: Path) -> list:
    """The losses of a run that resumes the first release's state."""
    from mindspore_coupalign.__main__ import main
    from mindspore_coupalign.data.refshapes.dataset import make_shapes

    make_shapes(folder / "shapes", 1, train=5, val=3, testA=1, testB=1)
    assert main(["train", "--resume", str(STATE), "--output", str(folder / "run"), f"data.root={folder / 'shapes'}",
                 f"train.steps={6 + STEPS}", "train.val_every=100", "train.log_every=1"]) == 0
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "grad_norm")} for line in lines if "loss" in line]


def test_a_state_of_the_first_release_continues_with_the_known_losses(tmp_path):
    curve, known = losses(tmp_path), json.loads((GOLDEN / "losses.json").read_text())
    assert [line["step"] for line in curve] == [line["step"] for line in known] == list(range(7, 7 + STEPS))
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[key] for line in curve], [line[key] for line in known], rtol=2e-3, err_msg=key)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        curve = losses(Path(place))
    (GOLDEN / "losses.json").write_text("[" + ",\n ".join(map(json.dumps, curve)) + "]\n")
    sys.exit()
