"""This project and its twin in plain PyTorch side by side on a CPU or GPU: `python benchmarks/pytorch_twin.py --help`.

The forward pass and the training step (forward, losses, backward, clipping, AdamW), each side in a process of its own;
they take turns, so that noise hits both. Random weights, random data, the configuration's drops and losses. Needs
requirements-parity.txt; the twin is tests/parity/torch_twin. With --onnx, for the forward pass, the exported ONNX file
in onnxruntime takes its turn as well. On a GPU (--device-target GPU, not run so far) each has the card alone, float32
means float32 on both, and O1 stands beside PyTorch's autocast in float16 with its GradScaler.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/parity"), str(ROOT / "tests/helpers")]  # the checkout this file lies in
ISA = "ONEDNN_MAX_CPU_ISA"  # the package sets it for MindSpore; PyTorch runs without it
VOCABULARY = 30522  # bert-base-uncased
WARM_UP = 1


def ours(case: dict, batch: tuple, threads: int):
    """(call, facts, peak of its memory in bytes) of the project."""
    import mindspore as ms
    import numpy as np

    from mindspore_coupalign import build, runtime
    from mindspore_coupalign.config import config_from_dict
    from mindspore_coupalign.models import macs
    from mindspore_coupalign.models.precision import choose_precision, set_precision
    from mindspore_coupalign.training import setup
    config, target = config_from_dict(case["config"], "case"), case["target"]
    runtime.setup(target, 0)
    if target == "CPU" and threads < os.cpu_count():
        ms.set_context(runtime_num_threads=threads)
    model = build.build_model(config, VOCABULARY)
    facts = {"macs": sum(macs.count(model.set_train(False), *(ms.Tensor(array[:1]) for array in batch[:3])).values()),
             "parameters": sum(p.size for p in model.trainable_params()),
             "settings": f"MindSpore {ms.__version__}, {ISA}={os.environ[ISA]}, {threads} threads"}
    inputs = [ms.Tensor(array) for array in batch]
    memory = resident if target == "CPU" else ms.runtime.max_memory_allocated
    if case["what"] == "forward":
        set_precision(model.set_train(False), choose_precision(config.train.amp, config.train.amp_dtype, target))
        return lambda: model(*inputs[:3]).asnumpy(), facts, memory
    step, rate = setup.build_train_step(model, config, target=target), ms.Tensor(np.float32(config.train.lr))
    return lambda: step(*inputs, rate).asnumpy()[0], facts, memory


def theirs(case: dict, batch: tuple, threads: int):
    """(call, facts, peak of its memory) of the twin."""
    import torch
    from torch_twin import macs
    from torch_twin.losses import losses
    from torch_twin.network import Twin
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config, train = case["config"], case["config"]["train"]
    device = "cuda" if case["target"] == "GPU" else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # as the project has it
    half = torch.autocast(device, torch.float16, enabled=train["amp"] != "O0")
    scaler = torch.amp.GradScaler(device, enabled=train["amp"] != "O0")
    memory = resident if device == "cpu" else torch.cuda.max_memory_allocated
    twin = Twin(config, VOCABULARY).to(device)
    facts = {"macs": macs.count(config, VOCABULARY), "parameters": sum(p.numel() for p in twin.parameters()),
             "settings": f"PyTorch {torch.__version__}, {ISA} {os.environ.get(ISA, 'not set')}, {threads} threads, "
                         f"attention by {twin.text.layer[0].attention.self.config._attn_implementation}"}
    image, ids, word_mask, mask = (torch.from_numpy(array).to(device) for array in batch)
    ids = ids.long()
    if case["what"] == "forward":
        twin.eval()

        def forward():
            with torch.inference_mode(), half:
                return twin(image, ids, word_mask)["logits"].float().cpu().numpy()
        return forward, facts, memory
    optimizer = torch.optim.AdamW(twin.train().parameters(), train["lr"], weight_decay=train["weight_decay"])

    def step():
        optimizer.zero_grad()
        with half:
            loss = losses(twin(image, ids, word_mask), mask, config["loss"])["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if train["clip_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), train["clip_norm"])
        scaler.step(optimizer)
        scaler.update()
        return loss.detach().cpu().numpy()
    return step, facts, memory


def onnx(case: dict, batch: tuple, threads: int):
    """(call, facts, peak of its memory) of the ONNX file, by the way that prediction takes."""
    import onnxruntime

    from mindspore_coupalign.inference.onnx import session
    run = session.runner(case["onnx"])
    facts = {"macs": None, "parameters": None, "settings": f"onnxruntime {onnxruntime.__version__}, {threads} threads, "
             f"{os.path.getsize(case['onnx']) / 2**30:.2f} GiB"}
    return lambda: run(*batch[:3]), facts, resident


def resident() -> int:
    """Peak of the process's memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_onnx(path: str):
    """Reads a configuration from stdin and writes its network, with random weights, to a file."""
    from mindspore_coupalign import build, runtime
    from mindspore_coupalign.config import config_from_dict
    from mindspore_coupalign.inference.onnx.export import network_to_onnx
    config = config_from_dict(json.load(sys.stdin), "case")
    runtime.setup("CPU", 0)
    model = build.build_model(config, VOCABULARY).set_train(False)
    Path(path).write_bytes(network_to_onnx(model, config.data, Path(path).parent).SerializeToString())


def child():
    """Reads a case, then a line per run from stdin; answers with a line of JSON each."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this process goes first
    case = json.loads(sys.stdin.readline())
    if case["target"] == "CPU":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:case["threads"]])
    import numpy as np
    from torch_twin.inputs import random_batch
    # as many background cells as the contrast draws, so that both compare the same number of pairs
    side = max(1, min(int(case["config"]["loss"]["negatives"] ** 0.5), case["config"]["data"]["image_size"] // 16))
    batch = random_batch(case["config"], VOCABULARY, case["batch"], background=side)
    start = time.perf_counter()
    call, facts, memory = SIDES[case["side"]][1](case, batch, case["threads"])
    built = time.perf_counter()
    call()
    facts |= {"build_s": built - start, "first_s": time.perf_counter() - built}
    for _ in range(WARM_UP):
        call()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        result = call()
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        if not np.isfinite(result).all():
            raise SystemExit("the result is not finite")
        print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_GiB": memory() / 2**30}), flush=True)


SIDES = {"ours": ("ours", ours), "theirs": ("PyTorch", theirs), "onnx": ("onnxruntime", onnx)}


class Child:
    """One side in its process."""

    def __init__(self, side: str, case: dict, environment: dict):
        python = case["peer_python"] if side == "theirs" else sys.executable
        self.process = subprocess.Popen([python, __file__, "--child"], stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, env=environment)
        self.peak, self.seconds, self.cpu = 0.0, [], []
        self.facts = self.ask(json.dumps(case | {"side": side}))

    def ask(self, line: str) -> dict:
        """Raises MemoryError: the process was killed; RuntimeError: it ended otherwise."""
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for answer in self.process.stdout:
            if answer.startswith("{"):
                return json.loads(answer)
        code = self.process.wait()
        raise MemoryError if code in (-9, 137) else RuntimeError(f"a measured process ended with code {code}")

    def run(self):
        answer = self.ask("run")
        self.seconds.append(answer["seconds"])
        self.cpu.append(answer["cpu_s"])
        self.peak = answer["peak_GiB"]

    def end(self):
        self.process.kill()
        self.process.communicate()


def together(case: dict, rounds: int, environment: dict) -> dict:
    """All sides alive, taking turns; side -> Child."""
    children = {}
    try:
        for side in case["sides"]:
            children[side] = Child(side, case, environment)
        for turn in range(rounds):
            for side in sorted(children, reverse=turn % 2 == 1):
                children[side].run()
    finally:
        for one in children.values():
            one.end()
    return children


def alone(side: str, case: dict, rounds: int, environment: dict) -> Child | None:
    """One side by itself; None where the memory does not suffice, on a GPU where it fails for any reason."""
    one = None
    try:
        one = Child(side, case, environment)
        for _ in range(rounds):
            one.run()
    except MemoryError:
        return None
    except RuntimeError:
        if case["target"] == "CPU":
            raise
        return None
    finally:
        if one is not None:
            one.end()
    return one


def measure(case: dict, rounds: int, environment: dict) -> dict:
    """A row: figures of all sides, taken in turn where the memory allows it, else one after the other."""
    row = {key: case[key] for key in ("target", "model", "what", "batch", "threads")}
    try:
        if case["target"] != "CPU":
            raise MemoryError
        children, row["in_turn"] = together(case, rounds, environment), True
    except MemoryError:
        children = {side: alone(side, case, rounds, environment) for side in case["sides"]}
        row["in_turn"] = False
    for side, one in children.items():
        row[side] = None if one is None else one.facts | {
            "seconds": one.seconds, "median_s": statistics.median(one.seconds), "cpu_s": one.cpu,
            "peak_GiB": one.peak}
    for side in case["sides"][1:]:
        if row["ours"] and row[side]:
            row[f"ratio_{side}"] = row["ours"]["median_s"] / row[side]["median_s"]
    return row | {"load_average": os.getloadavg()[0]}


def table(row: dict, sides: list) -> str:
    cells = [f"{row['model']:<10}{row['what']:<8}{row['batch']:>5}"]
    for side in sides:
        one = row.get(side)
        if one is None:
            cells.append(f"{'' if side not in row else 'no figure':>50}")
            continue
        span = f"({min(one['seconds']):.2f}-{max(one['seconds']):.2f})"
        macs = "" if one["macs"] is None else f"{one['macs'] / 1e9:.1f}"
        cpu = statistics.median(one["cpu_s"])
        cells.append(f"{one['median_s']:>12.2f} {span:<15}{cpu:>7.2f}{one['peak_GiB']:>7.1f}{macs:>8}")
    cells += [f"{row.get(f'ratio_{side}', float('nan')):>12.2f}" for side in sides[1:]]
    return "".join(cells) + ("" if row["in_turn"] else "  one after the other")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs/refcoco_swin_b.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--models", nargs="+", default=["coupalign"], choices=("coupalign", "lavt"))
    parser.add_argument("--what", nargs="+", default=["forward", "step"], choices=("forward", "step"))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each side, after two that are not")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="and cores, of both sides")
    parser.add_argument("--device-target", choices=("CPU", "GPU"), default="CPU")
    parser.add_argument("--amp", choices=("O0", "O1"), default="O0", help="O1: half precision, on a GPU alone")
    parser.add_argument("--peer-python", default=sys.executable, metavar="FILE", help="the Python that has PyTorch")
    parser.add_argument("--onnx", action="store_true", help="also time the ONNX file's forward pass")
    parser.add_argument("--json", help="write every figure to this file")
    options = parser.parse_args()
    if options.device_target == "CPU" and options.amp != "O0":
        parser.error("--amp O1: half precision is emulated on a CPU; there is nothing to compare")
    return options


def main():
    if sys.argv[1:] == ["--child"]:
        child()
        return
    if sys.argv[1:2] == ["--write-onnx"]:
        write_onnx(sys.argv[2])
        return
    options, environment = arguments(), {"GLOG_v": "3"} | os.environ  # before the package adds MindSpore's
    from mindspore_coupalign.config import config_to_dict, load_config
    load = os.getloadavg()
    sides = ["ours", "theirs", *(["onnx"] if options.onnx else [])]
    names = [SIDES[side][0] for side in sides]
    print(f"{platform.machine()}, {os.cpu_count()} cores; load average {load[0]:.1f} before the start. Seconds are "
          "medians (smallest-largest), CPU s of the process's threads (where other programs run, --threads 1 and this "
          "column compare), GiB the process's peak, GMACs a sample's forward pass, ratios ours to theirs.")
    print(f"{'model':<10}{'what':<8}{'batch':>5}" + "".join(f"{name:>12} {'s':<15}{'CPU s':>7}{'GiB':>7}{'GMACs':>8}"
                                                           for name in names)
          + "".join(f"{f': {name}':>12}" for name in names[1:]))
    rows = []
    for model in options.models:
        off = ["model.fusion.name=pixel_word", "model.sentence_mask=false",
               "model.fusion.stages=[1,2,3,4]", "loss.proposal_mask=0", "model.proposal_head=false"]
        off = off if model == "lavt" else []
        config = config_to_dict(load_config(options.config, [*options.overrides, *off, f"train.amp={options.amp}"]))
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/model.onnx"
            if options.onnx:
                subprocess.run([sys.executable, __file__, "--write-onnx", file], input=json.dumps(config), text=True,
                               check=True, env=environment)
            for what in options.what:
                for batch in options.batches:
                    case = {"model": model, "what": what, "batch": batch, "config": config, "onnx": file,
                            "threads": options.threads, "target": options.device_target,
                            "peer_python": options.peer_python, "sides": sides[:3 if what == "forward" else 2]}
                    rows.append(measure(case, options.rounds, environment))
                    print(table(rows[-1], sides), flush=True)
    for side in sides:
        found = sorted({row[side]["settings"] for row in rows if row.get(side)})
        print(f"{SIDES[side][0]}: {'; '.join(found)}")
    if options.json:
        Path(options.json).write_text(json.dumps({"load_average_before": load, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
