"""Data warnings: what is suspicious in a split, in one line when a run starts; ``check-data`` lists every case.

S sentence indices of a ReferData (its names: refer.py).
"""

import numpy as np

from mindspore_coupalign.config import DataConfig
from mindspore_coupalign.data.refer import ReferData
from mindspore_coupalign.data.tokenizer import SentenceTokenizer


def data_warnings(data: ReferData, splits: dict, tokenizer: SentenceTokenizer, names: DataConfig) -> list[str]:
    """What reading left out, and a line for each split, name -> samples (S,), of which there is something to say: empty
    masks, blank and truncated sentences, refs of one id."""
    texts = {name: _split_warnings(data, samples, tokenizer, names) for name, samples in splits.items()}
    return [*data.notes, *(f"warning: {name}: {text}" for name, text in texts.items() if text)]


def _split_warnings(data: ReferData, samples: np.ndarray, tokenizer: SentenceTokenizer, names: DataConfig) -> str:
    refs = np.unique(data.sentence_ref[samples])
    texts = [data.sentence(int(s), names.sentence_field) for s in samples]
    empty = [r for r in refs[data.has_target[refs]].tolist() if data.mask_area(r, names.overlap) == 0]
    blank = sum(not text.strip() for text in texts)
    cut = int((tokenizer.lengths(texts) > tokenizer.max_tokens).sum()) if texts else 0
    first = data.ref_ids[empty[0]] if empty else None
    found = (
        (len(empty), f"of {len(refs):,} ground-truth masks are empty (first: ref {first})"),
        (len(refs) - len(np.unique(data.ref_ids[refs])), "refs have the ref_id of another"),
        (blank, f"of {len(texts):,} sentences are blank"),
        (cut, f"of {len(texts):,} sentences are cut at data.max_tokens={tokenizer.max_tokens}"),
        (data.ref_left_out[refs].sum(), "polygons of fewer than three points are left out"))
    return "; ".join(f"{count:,} {text}" for count, text in found if count)


def no_target_warnings(data: ReferData, samples: np.ndarray, has_head: bool) -> list[str]:
    """A line where sentences have no target and the network has no head for it, or the reverse."""
    count = int((~data.has_target[data.sentence_ref[samples]]).sum())
    said = f"{len(samples):,} sentences have no target"
    if count and not has_head:
        return [f"note: {count:,} of {said} (no_target), which this network shows as an empty mask; "
                "model.no_target=true gives it a head for it"]
    if has_head and not count:
        return [f"note: none of {said}, so the head of model.no_target learns nothing"]
    return []


def exif_warning(data: ReferData) -> str:
    """Images read so far that EXIF would turn and whose size does not show it."""
    first = data.image_dir / str(data.image_files[min(data.turned)])
    return (f"warning: {len(data.turned):,} images read so far have an EXIF orientation (first: {first}); it is not "
            "applied: masks must lie on the pixels as stored (see check-data)")
