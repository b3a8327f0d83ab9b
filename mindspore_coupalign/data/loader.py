"""mindspore.dataset pipelines over a ReferData.

Training batch: image (b, 3, H, W), ids, word_mask (b, T), mask (b, 1, H, W), sample (b,) sentence index.
Evaluation batch: image, ids, word_mask, index of the prompt, -1 for the padding that fills the last batch.
b is this rank's share of the batch.
"""

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable

import cv2
import mindspore.dataset as ds
import numpy as np

from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import ImageTransform, flip_sentence
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.interrupts import Actions


class Tokens:
    """Token ids of chosen sentences, tokenised once: ``tokens[s]`` gives ids (T,) and word_mask (T,)."""

    def __init__(self, data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, flipped: bool = False,
                 field: str = "sent"):
        sentences = [data.sentence(s, field) for s in samples]
        self.ids, self.mask = tokenizer([flip_sentence(s) for s in sentences] if flipped else sentences)
        self.row = np.full(len(data.sentence_ref), -1, np.int32)
        self.row[samples] = np.arange(len(samples))

    def __getitem__(self, s: int):
        return self.ids[self.row[s]], self.mask[self.row[s]]


class _Source(ABC):
    """Random access for GeneratorDataset; keeps the first UserError, which the pipeline would wrap in its own words."""

    error: UserError | None = None
    actions: Actions | None = None  # to restore with the first entry

    @abstractmethod
    def item(self, k: int) -> tuple:
        """The columns of one entry."""

    def __getitem__(self, k):
        actions, self.actions = self.actions, None
        if actions is not None:
            actions.restore()
        try:
            return self.item(int(k))
        except UserError as exc:
            self.error = self.error or exc
            raise


class TrainSource(_Source):
    """The endless training order, cut to steps [start, stop).

    Position p of the order is sample p mod n of epoch p div n; one sentence per ref and epoch. Rank r of R takes the
    r-th R-th of every global batch, so that the order does not depend on the number of ranks.

    Args:
        field, overlap: which wording and which mask, as ``ReferData.sentence`` and ``mask`` know them.
    """

    def __init__(self, data, split, tokenizer, transform: ImageTransform, seed, batch_size, flip, steps, rank, ranks,
                 field: str = "sent", overlap: str = "union"):
        samples = data.split(split)
        self.data, self.split, self.transform, self.seed, self.flip = data, split, transform, seed, flip
        self.overlap = overlap
        self.tokens = [Tokens(data, samples, tokenizer, flipped, field)
                       for flipped in ((False, True) if flip else (False,))]
        self.per_epoch = data.epoch_size(split)
        self.batch_size, self.local, self.rank = batch_size, batch_size // ranks, rank
        self.start, self.stop = steps
        self.order = (-1, np.empty(0, np.int64))  # epoch, its samples

    def __len__(self):
        return (self.stop - self.start) * self.local

    def sample_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.per_epoch)
        current, order = self.order
        if current != epoch:
            order = self.data.epoch_samples(self.split, self.seed, epoch)
            self.order = (epoch, order)  # one assignment: safe among the pipeline's threads
        return int(order[offset])

    def item(self, k):
        step, j = divmod(k, self.local)
        position = (self.start + step) * self.batch_size + self.rank * self.local + j
        s = self.sample_at(position)
        r = int(self.data.sentence_ref[s])
        image, mask = self.data.resized_image(r, self.transform), self.data.mask(r, self.overlap)
        flip = self.flip and np.random.default_rng((self.seed, position)).random() < self.flip
        if flip:
            image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
        ids, word_mask = self.tokens[1 if flip else 0][s]
        target = self.transform.mask(mask)[None].astype(np.float32)
        return self.transform.normalise(image), ids, word_mask, target, np.int32(s)


class Pictures:
    """Prepared images of a data set by image index, safe among threads: one that was asked for a moment ago is not
    decoded again, and one that two threads want is decoded by the first.

    Args:
        prepare: ref -> what is kept of its image.
        kept: so many.
    """

    def __init__(self, data: ReferData, prepare: Callable, kept: int = 16):
        self._data, self._prepare, self._kept = data, prepare, kept
        self._places: OrderedDict[int, _Place] = OrderedDict()
        self._lock = threading.Lock()

    def of_ref(self, r: int) -> np.ndarray:
        i = int(self._data.ref_image[r])
        with self._lock:
            place = self._places.setdefault(i, _Place())
            self._places.move_to_end(i)
            if len(self._places) > self._kept:
                self._places.popitem(last=False)
        with place.lock:
            if place.picture is None:
                place.picture = self._prepare(r)
            return place.picture


class _Place:
    """Of one image; who holds the lock may decode it."""

    def __init__(self):
        self.lock, self.picture = threading.Lock(), None


class PromptSource(_Source):
    """Images with given word pieces, one after the other, then padding (index -1) to fill whole batches.

    Args:
        prompts: (index, ref, ids (n,), word_mask (n,)) with n <= tokens, T = tokens after padding.
        prepare: ref -> image, as the network takes it.
    """

    def __init__(self, data, prompts: list, tokens: int, pad_id: int, prepare: Callable, batch_size: int):
        self.prompts, self.tokens, self.pad_id = prompts, tokens, pad_id
        self.pictures = Pictures(data, prepare)
        self.length = -(-len(prompts) // batch_size) * batch_size

    def __len__(self):
        return self.length

    def item(self, k):
        ids, word_mask = np.full(self.tokens, self.pad_id, np.int32), np.zeros(self.tokens, np.int32)
        if k >= len(self.prompts):
            word_mask[0] = 1
            return np.zeros_like(self.pictures.of_ref(self.prompts[-1][1])), ids, word_mask, np.int32(-1)
        index, ref, pieces, mask = self.prompts[k]
        ids[: len(pieces)], word_mask[: len(mask)] = pieces, mask
        return self.pictures.of_ref(ref), ids, word_mask, np.int32(index)


def batches(source: _Source, batch_size: int, workers: int):
    """Iterate over a source in its order as tuples of NumPy arrays, prepared by threads.

    Raises:
        UserError: what the source raised on bad data.
    """
    columns = ["image", "ids", "word_mask", "mask", "sample"] if isinstance(source, TrainSource) else [
        "image", "ids", "word_mask", "sample"]
    # threads: decoding and resizing release the GIL, and nothing has to be copied between processes
    pipeline = ds.GeneratorDataset(source, columns, shuffle=False,
                                   num_parallel_workers=min(workers, os.cpu_count() or 1),  # more is an error
                                   python_multiprocessing=False)
    pipeline = pipeline.batch(batch_size, drop_remainder=True)
    # it installs handlers of its own, which end the process on SIGTERM with exit code 0
    source.actions = Actions(signal.SIGTERM, signal.SIGINT)
    try:
        yield from pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
    except RuntimeError as exc:
        if source.error is not None:
            raise source.error from exc
        raise
