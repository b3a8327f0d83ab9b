"""How other projects name the parameters of an architecture: what a backbone says so that their files load into it.

A rule is (pattern, replacement), tried in order on a whole name; a replacement of None skips the array: a buffer that
is derived here, or a head that belongs to another task. An array that no rule fits is an error. After the rules, norm
layers' weights, biases and statistics get MindSpore's names, and ``….qkv.…`` is split in three (weights/names.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

PLAIN = r"(weight|bias)"
OTHER_TASKS = (r"(decode_head|auxiliary_head|neck|rpn_head|roi_head|bbox_head|mask_head)\..+", None)
BATCH_COUNT = (r".*num_batches_tracked", None)


@dataclass(frozen=True)
class Source:
    """One way to name an architecture's parameters."""

    title: str
    mark: str  # a name that only this source has
    rules: tuple[tuple[str, str | None], ...]
    prepare: Callable[[dict], tuple[dict, list]] | None = None  # arrays -> (arrays under names that the rules know,
    # names left out); None: nothing to prepare
    settings: tuple[tuple[str, object], ...] = ()  # (field, value) that the weights need in the backbone's settings
