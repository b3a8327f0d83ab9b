"""What decoding each picture once and scoring in threads bring to evaluation: a thousand sentences on photograph-sized
pictures, seven to a picture as in RefCOCO's val, with a network that takes a fixed time a batch and no core, as a
device beside the CPU does.

Both ways go through the same pipeline and must count the same pixels; the earlier way decodes a picture for every
sentence, scores between the batches and adds truth values up.

Usage: python benchmarks/evaluation.py [--sentences 1000] [--milliseconds 20] [--batch 16]
"""

import argparse
import contextlib
import json
import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # a clone that is not installed

from mindspore_coupalign.config import Config, with_overrides
from mindspore_coupalign.data import loader
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.evaluation import protocols, scoring
from mindspore_coupalign.evaluation.prompts import make_plan

PER_IMAGE, PER_REF, HEIGHT, WIDTH = 7, 3, 480, 640


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--milliseconds", type=float, default=20, help="of the network, a batch")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    config = with_overrides(Config(), [f"eval.batch_size={args.batch}", "data.tokenizer=refshapes"], "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        data = write(Path(folder), args.sentences)
        runs = {}
        for name, setting in (("before", earlier()), ("after", contextlib.nullcontext())):
            with setting:
                runs[name] = measure(data, config, args.milliseconds / 1000)
    for name, (seconds, _) in runs.items():
        print(f"{name}: {seconds:.1f} s, {1000 * seconds / args.sentences:.1f} ms a sentence")
    assert runs["before"][1] == runs["after"][1], "the two ways count other pixels"
    waiting = args.milliseconds / 1000 * -(-args.sentences // args.batch)
    print(f"the network alone: {waiting:.1f} s; {runs['before'][0] / runs['after'][0]:.1f} times as fast, same scores")


def write(root: Path, sentences: int):
    """Noisy photographs of RefCOCO's size with ellipses for objects; an image's refs are spread over the file, as
    REFER's are."""
    random, images = np.random.default_rng(0), -(-sentences // PER_IMAGE)
    (root / "tiny").mkdir()
    (root / "images" / "tiny").mkdir(parents=True)
    records, annotations, refs = [], [], []
    for i in range(images):
        coarse = random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        cv2.imwrite(str(root / "images" / "tiny" / f"{i}.jpg"), cv2.resize(coarse, (WIDTH, HEIGHT)))
        records.append({"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH})
    for s in range(0, sentences, PER_REF):
        r = len(refs)
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        centre, radii = random.uniform((150, 120), (490, 360)), random.uniform(30, 110, 2)
        polygon = np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], 1)
        annotations.append({"id": r, "image_id": r % images, "segmentation": [polygon.ravel().tolist()]})
        texts = [f"the {colour} thing" for colour in ("red", "blue", "green")][: min(PER_REF, sentences - s)]
        refs.append({"ref_id": r, "ann_id": r, "image_id": r % images, "split": "val", "category_id": 1,
                     "sentences": [{"sent_id": s + k, "sent": text, "raw": text} for k, text in enumerate(texts)]})
    (root / "tiny" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "tiny" / "instances.json").write_text(json.dumps({"images": records, "annotations": annotations}))
    return read_refer(root, "tiny", "unc")


class Waits:
    """A network that answers with blobs after a while, in which the CPU is free."""

    uint8 = False

    def __init__(self, seconds: float, size: int):
        self.seconds = seconds
        self.blob = cv2.resize(np.random.default_rng(1).normal(0, 3, (6, 6)).astype(np.float32), (size, size))

    def __call__(self, length: int):
        return 20, self.run

    def run(self, image, ids, word_mask):
        time.sleep(self.seconds)
        return image[:, :1] + self.blob


class EachTime:
    """Pictures that are decoded for every sentence."""

    def __init__(self, data, prepare):
        self.data, self.prepare = data, prepare

    def of_ref(self, r: int):
        return self.prepare(self.data.read_image(r))


class AtOnce(contextlib.AbstractContextManager):
    """A pool that does not pool."""

    def __init__(self, *_):
        pass

    def submit(self, call, *arguments):
        call(*arguments)

    def __exit__(self, *_):
        return None


@contextlib.contextmanager
def earlier():
    def overlap(prediction, truth):
        return int((prediction & truth).sum()), int((prediction | truth).sum())

    with mock.patch.object(loader, "Pictures", EachTime), mock.patch.object(scoring, "Pool", AtOnce), \
            mock.patch.object(scoring, "overlap", overlap):
        yield


def measure(data, config, seconds: float) -> tuple[float, dict]:
    chosen = [protocols.resolve(protocol, config) for protocol in protocols.choose(["sentence"])]
    tokenizer = SentenceTokenizer.from_name("refshapes", config.data.max_tokens)
    plan = make_plan(data, data.split("val"), tokenizer, chosen)
    network = Waits(seconds, config.data.image_size)
    started = time.perf_counter()
    counts = scoring.score_plan(network, plan, chosen, data, tokenizer, config)
    return time.perf_counter() - started, scoring.report_plan(data, plan, chosen, counts, config.data.max_tokens)


if __name__ == "__main__":
    main()
