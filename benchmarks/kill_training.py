"""Kill a training run at random moments, go on with --resume each time, and compare its end with an undisturbed run.

    python benchmarks/kill_training.py --kills 100 [--device-target CPU] [key=value ...]

A small network with dropout and sampled negatives, on RefShapes, that saves after every step. The kills take turns:
while a checkpoint is being written, twice among the steps, and at any moment of the start (imports, compiling). After
the first of these the newest checkpoint is cut short as well, as by a disk that was full. Exit code 0: the loss curve
and every array of the last checkpoint are bit-identical.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    "model.fusion.name=pixel_word", "model.sentence_mask=false", "model.fusion.stages=[1,2,3,4]",
    "model.backbone.embed_dim=8", "model.backbone.depths=[1,1,1,1]",
    "model.backbone.heads=[1,1,2,2]", "model.backbone.window=4", "model.text.hidden=16", "model.text.groups=[1,0,0,0]",
    "model.text.ffn=16", "model.text.dropout=0.1", "model.fusion.heads=[1,1,2,2]", "model.decoder.dim=16",
    "model.query_heads=2", "loss.negatives=20", "loss.deep_supervision=0", "model.stage_heads=false",
    "loss.proposal_mask=0", "model.proposal_head=false", "train.minutes=0",
    "train.batch_size=4", "train.val_every=100000", "train.val_samples=1", "train.save_every=1", "train.log_every=1",
    "train.keep=3"]

WAYS = ("in a save", "among the steps", "at the start", "among the steps")


def train(data: Path, output: Path, steps: int, resume: bool, target: str, overrides: list) -> subprocess.Popen:
    how = ["--resume", output] if resume else ["--config", ROOT / "configs" / "refshapes_tiny.yaml"]
    arguments = [*how, "--output", output, "--device-target", target, f"data.root={data}", f"train.steps={steps}"]
    command = [sys.executable, "-m", "mindspore_coupalign", "train", *map(str, arguments), *SETTINGS, *overrides]
    with open(f"{output}.txt", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def newest_step(output: Path) -> int:
    lines = (output / "log.jsonl").read_text().splitlines() if (output / "log.jsonl").exists() else []
    return sum('"loss"' in line for line in lines)


def states(output: Path) -> list:
    return list(output.glob("last*.safetensors"))


def kill_once(process, output: Path, way: str, start_up: float, draw: random.Random) -> tuple[bool, float]:
    """(whether it was killed, seconds that it lived); False when it came to its end before."""
    start, before, first = time.perf_counter(), newest_step(output), None
    moment = draw.uniform(0, start_up) if way == "at the start" else draw.uniform(0, 0.5)
    while process.poll() is None:
        now, logged = time.perf_counter(), newest_step(output)
        # a resumed run first drops the lines of steps that were never saved
        before = min(before, logged)
        if first is None and logged > before and len(states(output)) > 1:
            first = now
        due = {"at the start": now - start > moment, "among the steps": first is not None and now - first > moment,
               "in a save": first is not None and any(output.glob(".*.tmp"))}[way]
        if due:
            process.kill()
            return True, now - start
        time.sleep(0.0005)
    return False, time.perf_counter() - start


def losses(output: Path) -> list:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines if "loss" in line]


def differences(one: Path, other: Path) -> list:
    """Names of arrays of the last checkpoints that are not bit-identical."""
    from safetensors.numpy import load_file
    a, b = (load_file(folder / "last.safetensors") for folder in (one, other))
    return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or (a[name] != b[name]).any())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device-target", default="CPU", help="a device whose kernels add up in any order gives other "
                        "last digits each time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="another network than the usual one")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from mindspore_coupalign.data.refshapes.dataset import make_shapes

    more = (args.device_target, args.overrides)
    draw, steps = random.Random(args.seed), 24 + 8 * args.kills
    with tempfile.TemporaryDirectory() as folder:
        data, whole, killed = (Path(folder) / name for name in ("data", "whole", "killed"))
        make_shapes(data, 1, train=6, val=1, testA=1, testB=1)
        start = time.perf_counter()
        if train(data, whole, steps, False, *more).wait():
            sys.exit(Path(f"{whole}.txt").read_text())
        start_up, counts, cut = (time.perf_counter() - start) / 2, dict.fromkeys(WAYS, 0), 0
        for number in range(args.kills):
            way, state = WAYS[number % 4], killed / "last.safetensors"
            process = train(data, killed, steps, bool(states(killed)), *more)
            was_killed, lived = kill_once(process, killed, way, start_up, draw)
            process.wait()
            if not was_killed:
                sys.exit(f"it ended by itself after {number} kills, with exit code {process.returncode}:\n"
                         + Path(f"{killed}.txt").read_text())
            counts[way] += 1
            start_up = lived if way == "among the steps" else start_up
            if number % 4 == 0 and len(states(killed)) > 1 and state.exists():
                state.write_bytes(state.read_bytes()[:draw.randrange(1, state.stat().st_size)])
                cut += 1
            print(f"kill {number + 1}: {way} after {lived:.1f} s, {newest_step(killed)} steps logged", flush=True)
        if train(data, killed, steps, bool(states(killed)), *more).wait():
            sys.exit(Path(f"{killed}.txt").read_text())
        different = differences(whole, killed)
        same_curve = losses(whole) == losses(killed)
        print(f"{sum(counts.values())} kills ({', '.join(f'{n} {way}' for way, n in counts.items())}), {cut} newest "
              f"checkpoints cut short; loss curve {'identical' if same_curve else 'DIFFERENT'} over {steps} steps, "
              f"{len(different)} arrays different")
    return 0 if same_curve and not different else 1


if __name__ == "__main__":
    sys.exit(main())
