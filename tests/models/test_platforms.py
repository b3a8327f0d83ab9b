"""The compiled graphs consist of primitives that MindSpore documents for Ascend and GPU: what can be known without one.

The graphs are the frontend's, before any target's back end, as a device would run them (half precision in training, the
stock layer norm). Graphs of full size have the same primitives and take minutes to compile.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore
import no_gpu
import pytest
from paper_rows import reduced
from platforms import GRADIENT, STRUCTURE, TARGETS, platforms

from mindspore_coupalign.config import Config, load_config, shipped_configs

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = Path(mindspore.__file__).parent / "lib" / "plugin"
# Not documented for every target, and why they may stay. MindSpore's compiler writes them itself, where the code says
# something else; a back end without such a kernel replaces it by documented primitives (expander::TryExpandCNode, which
# the plugins for CPU, GPU and Ascend call): no graph of the GPU's back end has one of them left.
EXCEPTIONS = {
    "Muls": "a tensor times a Python number", "Divs": "a tensor divided by a Python number",
    "AddScalar": "a tensor and a Python number, in the gradient of Log1p",
    "EqScalar": "a tensor compared with a Python number, in MindSpore's loss scaler",
    "RemainderTensorScalar": "a tensor modulo a Python number, in MindSpore's loss scaler",
    "PowTensorScalar": "the square in the gradient of Erf; documented for Ascend alone",
    "SplitWithSize": "the gradient of Concat",
    "MatMulExt": "ops.matmul",
}
MIXED = re.compile(r"\s+: \(<Tensor\[(Float\d+)\][^<]*<Tensor\[(Float\d+)\]")  # the first two inputs' types
RUN = """
import sys
sys.path[:0] = [{root!r}, *{tests!r}]
import mindspore as ms
from test_platforms import small
from tiny_network import VOCABULARY, tiny_batch
from mindspore_coupalign import build
from mindspore_coupalign.models import layers
from mindspore_coupalign.training import setup

layers.FAST_BELOW = 0  # the CPU's own layer norm
config = small({name!r}, "train.amp={amp}")
model = build.build_model(config, VOCABULARY).set_train({trains})
batch = map(ms.Tensor, tiny_batch(config.train.batch_size, config.data.image_size, config.data.max_tokens))
if {trains}:
    step = setup.build_train_step(model, config, target="GPU")
    assert step(*batch, ms.Tensor(1e-3, ms.float32)).asnumpy()[0] > 0
else:
    image, ids, word_mask, _ = batch
    model(image, ids, word_mask).asnumpy()
"""


def small(name: str, *overrides: str) -> Config:
    return reduced(load_config(name, overrides))


def kind(config: Config) -> tuple:
    """What decides which primitives a configuration's step has; sizes and learning rates do not."""
    model, loss, train = config.model, config.loss, config.train
    return (model.fusion.name, model.backbone.name, getattr(model.backbone, "activation", ""),
            getattr(model.backbone, "absolute_position", ""), model.text.activation,
            model.head.upsample, model.sentence_mask,
            model.no_target, loss.deep_supervision > 0, loss.proposal_mask > 0,
            loss.contrast > 0, train.ema > 0, train.muon_lr_mult > 0, train.clip_norm > 0, train.accumulate > 1)


def kinds() -> dict:
    """kind -> name of one shipped configuration that has it."""
    return {kind(small(name)): name for name in reversed(shipped_configs())}


def primitives(folder: Path) -> dict:
    """name -> a line of the package's source that it comes from, of all graphs written to a folder. A gradient
    of two float types, which the CPU alone computes, is called so: "LayerNormGrad of Float32, Float16"."""
    found = {}
    for graph in folder.rglob("*validate*.ir"):
        name = ""
        for line in graph.read_text(errors="replace").splitlines():
            if call := re.match(r"\s+%\S+ = (?:PrimFunc_)?([A-Z]\w*)\(", line):
                name = call[1]
                found.setdefault(name, "")
            elif (types := MIXED.match(line)) and GRADIENT.search(name) and types[1] != types[2]:
                name = f"{name} of {types[1]}, {types[2]}"
                found.setdefault(name, "")
            elif not found.get(name, True) and (place := re.search(r"(mindspore_coupalign/\S+\.py:\d+)", line)):
                found[name] = place[1]
    return found


def check(name: str, folder: Path, trains: bool, seen: set):
    """``seen``: primitives that are known to be in the graph."""
    place = os.environ | {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(folder),
                          "MS_DEV_DUMP_IR_PASSES": "validate"}
    code = RUN.format(root=str(ROOT), tests=sys.path, name=name, amp="auto", trains=trains)
    done = subprocess.run([sys.executable, "-c", code], env=place, text=True, capture_output=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    found = primitives(folder)
    assert seen <= found.keys(), sorted(found)  # the graph has been read
    undocumented = {primitive: f"{sorted(platforms(primitive))} from {source}" for primitive, source in found.items()
                    if primitive not in STRUCTURE and primitive not in EXCEPTIONS and platforms(primitive) != TARGETS}
    assert not undocumented


def test_the_forward_pass_of_the_recipe(tmp_path):
    check("refcoco_swin_b", tmp_path, trains=False, seen={"MatMul", "BatchMatMul", "Softmax", "Conv2D"})


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds().values())
def test_the_training_step_of_every_kind(tmp_path, name):
    check(name, tmp_path, trains=True, seen={"MatMul", "Softmax", "Conv2D", "Cast", "Adam", "LayerNormGrad"})


@pytest.mark.slow
@pytest.mark.skipif(not list(PLUGINS.glob("libmindspore_gpu.so.11.6")) or not shutil.which("gcc"),
                    reason="needs MindSpore's GPU back end, which is in its wheel for x86-64, and gcc")
@pytest.mark.parametrize("name, amp", [*((name, "auto") for name in kinds().values()),
                                       *(("refcoco_swin_b", f"O{level}") for level in range(4))])
def test_the_gpu_back_end_compiles_the_training_step(tmp_path, name, amp):
    """Without a GPU: the back end chooses its kernel for every node of the step, and refuses types that it has none
    for. The process ends when the first kernel is launched."""
    place = os.environ | no_gpu.make(tmp_path, PLUGINS.parents[1])
    place |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path / "graphs"),
              "MS_DEV_DUMP_IR_PASSES": "graph_build", "GLOG_v": "3"}
    code = RUN.format(root=str(ROOT), tests=sys.path, name=name, amp=amp, trains=True)
    gpu = "import mindspore as ms\nms.set_device('GPU')\nms.set_device = lambda *_: None  # not the tests' CPU\n"
    done = subprocess.run([sys.executable, "-c", gpu + code], env=place, text=True, capture_output=True, timeout=1500)
    assert done.returncode < 0 or "cuda Kernel fails to run" in done.stderr, done.stderr
    graphs = [path.read_text(errors="replace") for path in (tmp_path / "graphs").rglob("*graph_build*.ir")]
    assert "LayerNormGrad(" in "".join(graphs) and (tmp_path / "graphs" / "actor_set").is_dir()  # it was about to run
    left = [name for name in EXCEPTIONS if f"PrimFunc_{name}(" in "".join(graphs)]
    assert not left


def test_what_the_documentation_says():
    """Of a primitive itself, by reference, by its gradient; and of what is not for every target."""
    assert platforms("MatMul") == platforms("Abs") == platforms("LayerNormGrad") == platforms("ReluGrad") == TARGETS
    assert platforms("NoSuchPrimitive") == frozenset()
    assert platforms("PowTensorScalar") == {"Ascend"} and "GPU" not in platforms("FlashAttentionScore")
    for name in EXCEPTIONS:  # documented meanwhile: no exception any more
        assert platforms(name) != TARGETS, f"{name} is documented for all targets; take it out of EXCEPTIONS"
