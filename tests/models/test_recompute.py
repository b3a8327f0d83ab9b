"""train.recompute: the same losses, gradients and step, and a graph in which every block is computed again, but not
before its gradient has come. The step with recomputation runs in a process of its own, which writes its graph down."""

import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from tiny_network import DROPPING, ENCODERS, VOCABULARY, tiny_batch, tiny_config, tiny_model

from mindspore_coupalign import build
from mindspore_coupalign.distributed.process import environment_alone
from mindspore_coupalign.models.recompute import recompute_blocks
from mindspore_coupalign.models.rng import draw_keys
from mindspore_coupalign.training import setup

BATCH = 4
DROPS = (*DROPPING, f"train.batch_size={BATCH}")
VARIANTS = {**ENCODERS, "frozen": ("model.backbone.name=resnet",), "half": ("train.amp=O2",)}
RATE = 1e-3
GRADIENTS, ENDS = "Gradients/", re.compile(r" (?:cnode|primitive)_(?:primal_)?attrs: ")


def two_steps(variant: str, recompute: bool) -> dict:
    """Everything that two steps with different random numbers leave: weights, statistics, moments, results. The first
    has a learning rate of 0: Adam turns rounding, where a gradient is 0, into whole steps."""
    ms.set_seed(0)
    config = tiny_config(*DROPS, *VARIANTS[variant], f"train.recompute={str(recompute).lower()}")
    model = build.build_model(config, VOCABULARY)
    step = setup.build_train_step(model, config)
    batch, left = [*map(ms.Tensor, tiny_batch(BATCH))], {}
    for number in range(2):
        keys = draw_keys(step.keys.size, 3, 0, number)
        left[f"results {number}"] = step(*batch, ms.Tensor(RATE * number, ms.float32), keys).asnumpy()
        left |= {f"{section}.{name} {number}": np.array(array) for section, arrays in step.states().items()
                 for name, array in arrays.items()}
    return left | {p.name: p.asnumpy() for p in model.get_parameters()}


def nodes_of(path: Path):
    """Of each dumped graph, its nodes: (operator, numbers of the nodes that it reads, its attributes, its scope)."""
    nodes = []
    for line in path.read_text().splitlines():
        if found := re.match(r"  %(\d+)\(.*?\) = (.*)", line):
            if int(found[1]) < len(nodes):  # the numbers begin anew: another graph
                yield nodes
                nodes = []
            call, *attributes = ENDS.split(found[2])
            nodes.append([re.match(r"[\w/.$]*", call)[0], [int(n) for n in re.findall(r"%(\d+)\b", call)],
                          " ".join(attributes), ""])
        elif (found := re.search(r"# (?:Fullname with scope|Scope): \((.*)\)", line)) and nodes and not nodes[-1][3]:
            nodes[-1][3] = found[1]
    yield nodes


def check_graph(folder: Path, blocks: int):
    """Every attention is there a second time, and what is computed again waits for a gradient."""
    graph = max(nodes_of(next(folder.glob("*_validate_*.ir"))), key=len)
    again = [node for node in graph if "duplicated: Bool(1)" in node[2]]
    units = [re.search(r"recompute_sub_graph: U64\((\d+)\)", node[2])[1] for node in again if "Softmax" in node[0]]
    assert len(units) == len(set(units)) == blocks, units  # each block by itself
    awaited = set()
    for _, reads, attributes, _ in graph:
        if "recompute_depend: Bool(1)" in attributes:
            assert graph[reads[-1]][0] == "MakeTuple"
            awaited.add(tuple(graph[reads[-1]][1]))
    assert len(awaited) >= blocks
    for several in awaited:
        assert several and all(graph[number][3].startswith(GRADIENTS) for number in several)


def same_as_recomputed(variant, tmp_path):
    place = environment_alone() | {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path / "graphs"),
                                   "MS_DEV_DUMP_IR_PASSES": "validate"}
    command = [sys.executable, __file__, variant, tmp_path / "left.npz"]
    with open(tmp_path / "said", "w") as said, subprocess.Popen(command, env=place, stderr=said) as child:
        kept = two_steps(variant, False)
    assert child.returncode == 0, (tmp_path / "said").read_text()[-2000:]
    again = np.load(tmp_path / "left.npz")
    assert set(kept) == set(again.files)
    return kept, again


def check_equal(kept, again, tolerance=1e-6):
    """Moments are linear in the gradients; weights are compared where the gradient is more than rounding."""
    largest = max(np.abs(array).max() for name, array in kept.items() if name.startswith("adam_m."))
    moved = 0
    for name, array in kept.items():
        if name.startswith("results"):
            np.testing.assert_allclose(again[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
        elif name.startswith("adam_m."):
            np.testing.assert_allclose(again[name], array, rtol=1e-4, atol=tolerance * largest, err_msg=name)
        elif name.endswith(("moving_mean", "moving_variance")):
            np.testing.assert_allclose(again[name], array, rtol=1e-5, atol=tolerance, err_msg=name)
        elif f"adam_m.{name} 1" in kept:
            clear = np.abs(kept[f"adam_m.{name} 1"]) > 1e3 * tolerance * largest
            np.testing.assert_allclose(again[name][clear], array[clear], rtol=0, atol=RATE / 50, err_msg=name)
            moved += np.count_nonzero(clear)
    assert moved > 1000 or tolerance > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputation_changes_no_number_and_waits_for_the_gradient(variant, tmp_path):
    kept, again = same_as_recomputed(variant, tmp_path)
    check_equal(kept, again, 1e-2 if variant == "half" else 1e-6)
    if variant in ("swin", "lavt"):
        check_graph(tmp_path / "graphs", blocks=6)


def test_nothing_but_the_encoders_blocks_is_recomputed():
    model = tiny_model(*DROPS, *VARIANTS["resnet"])
    assert recompute_blocks(model) == 6  # four of ResNet, two of BERT
    marked = {name for name, cell in model.cells_and_names() if (cell.get_scope() or "").startswith("recompute_")}
    blocks = [name for name, cell in model.cells_and_names() if getattr(cell, "recomputable", False)]
    assert len(blocks) == 6 and set(blocks) <= marked
    assert all(name.startswith(tuple(blocks)) for name in marked)
    norms = [cell for _, cell in model.cells_and_names() if isinstance(cell, ms.nn.BatchNorm2d)]
    assert norms and all(norm.bn_train.attrs["recompute"] is False for norm in norms)


def test_what_is_evaluated_or_exported_knows_nothing_of_it():
    """Only the training step marks blocks; all else builds its network by build_model."""
    model = tiny_model(*DROPS, "train.recompute=true")
    names = [p.name for p in model.get_parameters()]
    assert not any(cell.get_scope() for _, cell in model.cells_and_names())
    assert recompute_blocks(model) and [p.name for p in model.get_parameters()] == names


if __name__ == "__main__":
    np.savez(sys.argv[2], **two_steps(sys.argv[1], True))
