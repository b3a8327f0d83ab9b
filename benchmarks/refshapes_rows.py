"""CoupAlign, CoupAlign without its parts, and LAVT on RefShapes: equal steps and equal time, three seeds each.

    python benchmarks/refshapes_rows.py            # two to three hours on two cores; a second start goes on
    python benchmarks/refshapes_rows.py --wpa-rows # all seven sets of aligned stages as well
    python benchmarks/refshapes_rows.py --table --scores docs/refshapes_rows.json   # what was published

Every row is configs/refshapes_tiny.yaml with the overrides of ROWS, trained by the command train on one core and one
thread, as many runs at a time as there are cores. First the training steps of all rows are timed in turn in one
process; a row that is slower or faster than CoupAlign then gets fewer or more steps for the comparison at equal time.
Files: <output>/scores.json, all that the table needs, so that it can be finished on another machine (--scores), and a
folder per run with the usual files of train and results.json of evaluate.
"""

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "refshapes_tiny.yaml"
WHOLE = ["model.fusion.stages=[1,2,3,4]"]
ROWS = {
    "coupalign": ("CoupAlign (word-pixel alignment at stages 1-4)", WHOLE),
    "wpa-early": ("word-pixel alignment at stages 1, 2", ["model.fusion.stages=[1,2]"]),
    "wpa-late": ("word-pixel alignment at stages 3, 4", ["model.fusion.stages=[3,4]"]),
    "wpa-none": ("no word-pixel alignment", ["model.fusion.stages=[]"]),
    "no-sma": ("no sentence-mask alignment", [*WHOLE, "model.sentence_mask=false", "loss.proposal_mask=0",
                                              "model.proposal_head=false"]),
    "no-contrast": ("no contrast loss", [*WHOLE, "loss.contrast=0"]),
    "lavt": ("LAVT (no contrast loss, as in its paper)",
             [*WHOLE, "model.fusion.name=pixel_word", "model.sentence_mask=false",
              "loss.contrast=0", "loss.proposal_mask=0", "model.proposal_head=false"]),
}
WPA_ROWS = {f"wpa-{s}": (f"word-pixel alignment at stage {s}", [f"model.fusion.stages=[{s}]"]) for s in (1, 2, 3, 4)}
SPLITS = ("val", "testA", "testB")
ONE_THREAD = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import mindspore as ms; "
              "ms.set_context(runtime_num_threads=1); "
              "from mindspore_coupalign.__main__ import console; sys.exit(console())")
ROUNDS, STEPS_PER_ROUND = 7, 5


def command(arguments: list, core: int, log: Path):
    """One command of the project on one core, its output in a file."""
    with log.open("a") as file:
        done = subprocess.run([sys.executable, "-c", ONE_THREAD, str(ROOT), *map(str, arguments)], stdout=file,
                              stderr=subprocess.STDOUT, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} failed; see {log}")


def one_run(folder: Path, data: Path, overrides: list, steps: int, seed: int, core: int):
    """Train and evaluate, from where an earlier start was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    resume = ["--resume", folder] if any(folder.glob("last*.safetensors")) else []
    settings = [f"data.root={data}", "data.workers=1", "train.minutes=0", f"train.steps={steps}",
                f"train.val_every={max(1, steps // 2)}", "train.val_samples=50", f"train.seed={seed}", *overrides]
    command(["train", "--config", CONFIG, "--output", folder, *resume, *settings], core, folder / "output.txt")
    # the last weights: "best" would be chosen by 50 sentences
    command(["evaluate", "--checkpoint", folder / "last.safetensors", "--split", *SPLITS, "--output",
             folder / "results.json"], core, folder / "output.txt")


def measure_steps(rows: dict) -> dict:
    """Median seconds of one training step of each row, in turn, on one core; in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--measure", json.dumps(rows)], capture_output=True, text=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, {cores()[0]}))
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def timed_rows(rows: dict) -> dict:
    sys.path.insert(0, str(ROOT))
    import mindspore as ms
    import numpy as np

    from mindspore_coupalign import build, runtime
    from mindspore_coupalign.config import load_config
    from mindspore_coupalign.data.tokenizer import SentenceTokenizer
    from mindspore_coupalign.training import setup

    runtime.setup("CPU", 0)
    ms.set_context(runtime_num_threads=1)
    random, runs = np.random.default_rng(0), {}
    for name, (_, overrides) in rows.items():
        config = load_config(CONFIG, overrides)
        data, batch = config.data, config.train.batch_size
        tokenizer = SentenceTokenizer.from_name(data.tokenizer, data.max_tokens)
        step = setup.build_train_step(build.build_model(config, tokenizer.vocab_size), config)
        ids, words = tokenizer(["second circle from the right of the red square"] * batch)
        image = random.normal(size=(batch, 3, data.image_size, data.image_size)).astype(np.float32)
        mask = (image[:, :1] > 1).astype(np.float32)
        # a learning rate of 0: weights that learn noise drift to where numbers are denormal and slow
        inputs = [ms.Tensor(x) for x in (image, ids, words, mask, np.float32(0))]
        step(*inputs).asnumpy()  # compiles
        runs[name] = (step, inputs)
    seconds = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, (step, inputs) in runs.items():
            start = time.perf_counter()
            for _ in range(STEPS_PER_ROUND):
                step(*inputs).asnumpy()
            seconds[name].append((time.perf_counter() - start) / STEPS_PER_ROUND)
    return {name: statistics.median(values) for name, values in seconds.items()}


def cores() -> list:
    return sorted(os.sched_getaffinity(0))


def plan(rows: dict, times: dict, steps: int, seeds: list) -> list:
    """(row, steps, seed) of every run, equal steps first; a row as fast as CoupAlign needs one run for both."""
    wanted = [(name, count(name), seed) for count in (lambda _: steps, lambda name: equal_time(name, times, steps))
              for seed in seeds for name in rows]
    return list(dict.fromkeys(wanted))


def equal_time(name: str, times: dict, steps: int) -> int:
    return round(steps * times["coupalign"] / times[name])


def name_of(name: str, steps: int, seed: int) -> str:
    return f"{name}-{steps}-seed{seed}"


def table(scores: dict, rows: dict, steps: int, seeds: list) -> str:
    """Markdown; oIoU and mIoU are means of the three splits: median of the seeds (smallest to largest)."""
    times, runs = scores["times"], scores["runs"]
    lines = [f"| | step | oIoU, {steps} steps | mIoU | val / testA / testB | steps in equal time | oIoU | mIoU |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, (title, _) in rows.items():
        if name not in times:
            lines.append(f"| {title} | not timed | | | | | | |")
            continue
        count = equal_time(name, times, steps)
        cells = [title, f"{times[name] / times['coupalign']:.2f}"]
        for n in (steps, count):
            found = [runs[key] for key in (name_of(name, n, seed) for seed in seeds) if key in runs]
            missing = f" [{len(found)} of {len(seeds)}]" if len(found) < len(seeds) else ""
            if n == count and len(cells) > 2:
                cells.append(str(count))
            cells += [spread(found, "oIoU") + missing, spread(found, "mIoU")]
            if len(cells) == 4:
                cells.append(" / ".join(f"{statistics.median(r[s]['oIoU'] for r in found):.1f}" for s in SPLITS)
                             if found else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_results(path: Path) -> dict:
    """split -> metric -> value at the image's own size, of a results.json."""
    splits = json.loads(path.read_text())["splits"]
    return {split: {metric: result["image"][metric] for metric in ("oIoU", "mIoU")} for split, result in splits.items()}


def spread(found: list, metric: str) -> str:
    values = sorted(statistics.mean(result[split][metric] for split in SPLITS) for result in found)
    return f"{statistics.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})" if values else "not run"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/rows"))
    parser.add_argument("--data", type=Path, default=Path("data/refshapes"), help="drawn here when it is not there")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--wpa-rows", action="store_true", help="also word-pixel alignment at one stage alone")
    parser.add_argument("--scores", type=Path, help="where the scores are kept (default: <output>/scores.json)")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(timed_rows(json.loads(args.measure))))
        return
    rows = ROWS | (WPA_ROWS if args.wpa_rows else {})
    file = args.scores or args.output / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else {"times": {}, "runs": {}}
    if not args.table:
        file.parent.mkdir(parents=True, exist_ok=True)
        if time_rows(rows, scores["times"]):
            file.write_text(json.dumps(scores, indent=1))
        if not (args.data / "refshapes").exists():
            subprocess.run([sys.executable, "-m", "mindspore_coupalign", "make-shapes", "--output", args.data],
                           cwd=ROOT, check=True)
        wanted = plan(rows, scores["times"], args.steps, args.seeds)
        run_all(args.output, args.data.resolve(), rows, wanted, scores, file)
    print(table(scores, rows, args.steps, args.seeds))


def time_rows(rows: dict, times: dict) -> bool:
    """Add what is missing to ``times``; whether there was something.

    Rows that were timed before keep their numbers of steps: the new ones are put in proportion to CoupAlign.
    """
    new = {name: row for name, row in rows.items() if name not in times or name == "coupalign"}
    if new.keys() <= times.keys():
        return False
    print("timing the training step of each row in turn", flush=True)
    measured = measure_steps(new)
    unit = times.get("coupalign", measured["coupalign"]) / measured["coupalign"]
    times |= {name: unit * seconds for name, seconds in measured.items() if name not in times}
    return True


def run_all(output: Path, data: Path, rows: dict, wanted: list, scores: dict, file: Path):
    """The runs that have no scores yet, one per core at a time."""
    free, lock = queue.SimpleQueue(), threading.Lock()
    for core in cores():
        free.put(core)
    left = [run for run in wanted if name_of(*run) not in scores["runs"]]

    def go(run):
        name, steps, seed = run
        core, start, folder = free.get(), time.perf_counter(), output / name_of(*run)
        try:
            one_run(folder, data, rows[name][1], steps, seed, core)
        finally:
            free.put(core)
        found = read_results(folder / "results.json")
        with lock:
            scores["runs"][name_of(*run)] = found
            file.write_text(json.dumps(scores, indent=1))
        score = spread([found], "oIoU").split()[0]
        print(f"{name}, {steps} steps, seed {seed}: oIoU {score} ({time.perf_counter() - start:.0f} s)", flush=True)

    print(f"{len(left)} of {len(wanted)} runs to do", flush=True)
    with ThreadPoolExecutor(len(cores())) as pool:
        list(pool.map(go, left))


if __name__ == "__main__":
    main()
