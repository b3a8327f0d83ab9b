"""One side of the comparison in a process of its own: `python -m torch_twin ours|theirs FOLDER`, ours first.

FOLDER holds case.json (configuration and vocabulary) and batch.npz; each side writes its features.npz, losses.json and
gradients.npz below FOLDER/<side>. Full size needs more memory than both sides together have.
"""

import json
import sys
from pathlib import Path

import numpy as np

from torch_twin.inputs import random_weights


def write(folder: Path, losses: dict, gradients: dict):
    np.savez(folder / "gradients.npz", **gradients)
    (folder / "losses.json").write_text(json.dumps(losses))


def ours(folder: Path, case: dict, batch: tuple):
    import mindspore as ms
    from tiny_network import pynative

    from mindspore_coupalign.config import config_from_dict
    from torch_twin import ours

    config = config_from_dict(case["config"], "case.json")
    objective, weights = ours.built(config, case["vocabulary"])
    (folder / "shapes.json").write_text(json.dumps({name: array.shape for name, array in weights.items()}))
    del weights
    features, hooks = ours.intermediates(objective.model)
    sides, more_hooks = ours.sides(objective.model, config)
    with pynative():
        objective.model.forward(*map(ms.Tensor, batch[:3]))
    for hook in (*hooks, *more_hooks):
        hook.remove()
    np.savez(folder / "sides.npz", **sides)
    np.savez(folder / "ours" / "features.npz", **features)
    del features, sides
    write(folder / "ours", *ours.losses_and_gradients(objective, batch))


def theirs(folder: Path, case: dict, batch: tuple):
    from torch_twin import theirs

    weights = random_weights(json.loads((folder / "shapes.json").read_text()))
    features, *rest = theirs.run(case["config"], case["vocabulary"], weights, batch,
                                 sides=dict(np.load(folder / "sides.npz")))
    np.savez(folder / "theirs" / "features.npz", **features)
    write(folder / "theirs", *rest)


if __name__ == "__main__":
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this process goes first
    where = Path(sys.argv[2])
    (where / sys.argv[1]).mkdir(exist_ok=True)
    arrays = np.load(where / "batch.npz")
    given = tuple(arrays[name] for name in ("image", "ids", "word_mask", "mask"))
    {"ours": ours, "theirs": theirs}[sys.argv[1]](where, json.loads((where / "case.json").read_text()), given)
