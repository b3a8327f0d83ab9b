"""Time and memory of the full recipe on this machine: `python benchmarks/full_size.py [CONFIG] [key=value ...]`.

Builds the network with random weights, compiles and runs the forward pass and one training step, each in a process of
its own so that peak memory is its own; exports it and compares the MINDIR file. Tokens are drawn at random.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout this file lies in
VOCABULARY = 30522  # bert-base-uncased


def prepare(config_file: str, overrides: list):
    import numpy as np

    from mindspore_coupalign import build, runtime
    from mindspore_coupalign.config import load_config
    config = load_config(config_file, overrides)
    runtime.setup("auto", 0)
    start = time.perf_counter()
    model = build.build_model(config, VOCABULARY)
    rng = np.random.default_rng(0)
    size, tokens = config.data.image_size, config.data.max_tokens
    batch = (rng.standard_normal((1, 3, size, size)).astype(np.float32),
             rng.integers(0, VOCABULARY, (1, tokens)).astype(np.int32), np.ones((1, tokens), np.int32),
             (rng.random((1, 1, size, size)) > 0.9).astype(np.float32))
    return config, model, batch, time.perf_counter() - start


def forward(config_file, overrides):
    import mindspore as ms
    _, model, batch, built = prepare(config_file, overrides)
    model.set_train(False)
    return built, *twice(lambda: model(*map(ms.Tensor, batch[:3])).asnumpy())


def step(config_file, overrides):
    import mindspore as ms
    import numpy as np

    from mindspore_coupalign.mindspore_calls import device_target
    from mindspore_coupalign.training import setup

    config, model, batch, built = prepare(config_file, overrides)
    train_step = setup.build_train_step(model, config, target=device_target())
    rate = ms.Tensor(np.float32(config.train.lr))
    return built, *twice(lambda: train_step(*map(ms.Tensor, batch), rate).asnumpy())


def export(config_file, overrides):
    from mindspore_coupalign.data.tokenizer import SentenceTokenizer
    from mindspore_coupalign.inference.mindir import export_mindir
    from mindspore_coupalign.weights.checkpoint import load_checkpoint, named_arrays, save_checkpoint
    config, model, _, built = prepare(config_file, overrides)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, words = Path(folder) / "model.safetensors", Path(folder) / "words"
        words.mkdir()
        made_up = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(VOCABULARY - 5)]
        (words / "vocab.txt").write_text("\n".join(made_up))
        tokenizer = SentenceTokenizer.from_name(str(words), config.data.max_tokens)
        save_checkpoint(checkpoint, named_arrays(model.get_parameters(), "model"), config, tokenizer.to_json(),
                        {"step": 0})
        start = time.perf_counter()
        print("differences:", export_mindir(load_checkpoint(checkpoint), Path(folder) / "model.mindir"))
        return built, time.perf_counter() - start, 0.0


def twice(run):
    times = []
    for _ in range(2):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    if not (abs(result) < float("inf")).all():
        raise SystemExit("the result is not finite")
    return times


def main():
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("forward", "step", "export"):
        built, first, second = globals()[arguments[0]](arguments[1], arguments[2:])
        from mindspore_coupalign.mindspore_calls import device_target
        from mindspore_coupalign.training.dry_run import memory
        peak = memory(device_target())[0] / 2**30
        print(json.dumps({"build_s": round(built, 1), "first_s": round(first, 1), "second_s": round(second, 1),
                          "peak_GiB": round(peak, 1)}))
        return
    config = arguments[0] if arguments else str(ROOT / "configs/refcoco_swin_b.yaml")
    for what in ("forward", "step", "export"):
        done = subprocess.run([sys.executable, __file__, what, config, *arguments[1:]], capture_output=True, text=True)
        print(f"{what:<8}", *(done.stdout.splitlines() if done.returncode == 0 else done.stderr.splitlines()[-3:]))


if __name__ == "__main__":
    main()
