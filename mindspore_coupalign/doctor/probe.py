"""What the doctor tries in a child process, since it may crash or hang: a line of JSON per finding on stdout.

    python -m mindspore_coupalign.doctor.probe device TARGET
    python -m mindspore_coupalign.doctor.probe config FILE [key=value ...]
    python -m mindspore_coupalign.doctor.probe checkpoint FILE
"""

import json
import sys
import time
from collections.abc import Callable


def say(good: bool, text: str):
    print(json.dumps({"good": good, "text": text}), flush=True)


def attempt(name: str, check):
    """``check()`` returns a good finding's text, or None where it has reported itself; an exception is a bad one."""
    try:
        if (text := check()) is not None:
            say(True, f"{name}{text}")
    except Exception as exc:
        kind = "" if type(exc).__name__ == "UserError" else f"{type(exc).__name__}: "
        lines = [line.strip() for line in str(exc).splitlines() if line.strip(" -\t")]
        say(False, f"{name}{kind}{' '.join(lines)[:400]}")


def device(target: str) -> str:
    """Multiplies two matrices on the target and compares with NumPy."""
    import numpy as np

    start = time.time()
    import mindspore as ms

    from mindspore_coupalign.mindspore_calls import graph_mode

    loaded = time.time() - start
    if target != "CPU" and not getattr(ms.device_context, target.lower()).is_available():
        raise RuntimeError("MindSpore does not offer it, though nothing seems to be missing; GLOG_v=1 shows its log")
    ms.set_device(target)
    graph_mode()
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    product = ms.ops.matmul(ms.Tensor(values), ms.Tensor(values)).asnumpy()
    if not np.allclose(product, values @ values, rtol=1e-2):
        raise RuntimeError(f"a matrix product is wrong: {product[0, 0]} instead of {(values @ values)[0, 0]}")
    spent = time.time() - start - loaded
    return f"a matrix product is right ({spent:.1f} s; loading MindSpore took {loaded:.1f} s)"


def config(path: str, *overrides: str):
    """Each input of a configuration by itself."""
    from mindspore_coupalign.config import load_config

    settings = load_config(path, overrides)
    data, model = settings.data, settings.model
    say(True, f"config: {path}, {model.fusion.name}, {data.dataset}")

    def tokenizer():
        from mindspore_coupalign.data.tokenizer import SentenceTokenizer

        loaded = SentenceTokenizer.from_name(data.tokenizer, data.max_tokens)
        return f"{data.tokenizer}, {loaded.vocab_size} word pieces"

    def refs():
        from mindspore_coupalign.data.sets import open_data

        refer = open_data(data)
        missing = [name for name in refer.image_files[:100] if not (refer.image_dir / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{refer.image_dir / missing[0]} is missing; see `check-data`")
        return f"{refer.source}, {len(refer.ref_ids)} refs, images in {refer.image_dir}"

    attempt("tokenizer: ", tokenizer)
    attempt("data: ", refs)
    for name, value in (("backbone_weights", model.backbone_weights), ("text_weights", model.text_weights)):
        if value:
            attempt(f"{name}: ", lambda value=value: weights(value))


def weights(path: str) -> str:
    from mindspore_coupalign.weights.files import kind_of, weight_file

    file = weight_file(path)
    return f"{file}, {file.stat().st_size / 1e6:.0f} MB, {kind_of(file)}"


def checkpoint(path: str) -> str:
    from mindspore_coupalign.weights.checkpoint import load_checkpoint

    loaded = load_checkpoint(path)
    return f"{path}, {len(loaded.arrays)} arrays, step {loaded.progress.get('step', '?')}, undamaged"


def main(kind: str, *arguments: str):
    checks: dict[str, Callable] = {"device": device, "config": config, "checkpoint": checkpoint}
    attempt("" if kind == "device" else f"{kind}: ", lambda: checks[kind](*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
