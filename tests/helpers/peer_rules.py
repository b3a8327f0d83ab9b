"""Other projects' counting, written out once more from their code, one unit after the other, without this project's
modules. A ``layers`` array is REFER's mask before anyone thresholds it: per pixel, how many parts of the object cover
it. Predictions are (h, w) bool; scores are in percent.
"""

import numpy as np


def lavt(units):
    """test.py of yz93/LAVT-RIS; units: (prediction, layers) per sentence."""
    total_i = total_u = 0
    ious, passed = [], dict.fromkeys((0.5, 0.6, 0.7, 0.8, 0.9), 0)
    for prediction, layers in units:
        target = np.zeros(layers.shape, int)
        target[layers == 1] = 1
        i, u = np.logical_and(prediction, target).sum(), np.logical_or(prediction, target).sum()
        value = i / u if u != 0 else 0.0
        ious.append(value)
        total_i, total_u = total_i + i, total_u + u
        for x in passed:
            passed[x] += value >= x
    return {"oIoU": 100 * total_i / total_u, "mIoU": 100 * np.mean(ious),
            **{f"P@{x}": 100 * n / len(ious) for x, n in passed.items()}}


def cris(units):
    """engine.py of DerrickWang005/CRIS.pytorch; its masks are 255 times the layers in a byte: 2 layers count."""
    ious = []
    for prediction, layers in units:
        mask = (layers * 255).astype(np.uint8) / 255.0
        ious.append(np.logical_and(prediction, mask).sum() / (np.logical_or(prediction, mask).sum() + 1e-6))
    thresholds = np.arange(0.5, 1.0, 0.1).astype(np.float32)  # as torch.arange makes them
    return {"mIoU": 100 * np.mean(ious),
            **{f"P@{x:.1f}": 100 * np.mean([value > float(x) for value in ious]) for x in thresholds}}


def evf_sam(images):
    """eval.py of hustvl/EVF-SAM; images: per image a list of (prediction, layers), one per sentence."""
    total_i = total_u = iou_sum = count = 0
    for units in images:
        accuracy = 0.0
        for prediction, layers in units:
            output = prediction.astype(int)
            # two-class histograms: a pixel of value 2 lies in neither bin
            i = (output[output == layers] == 1).sum()
            u = (output == 1).sum() + (layers == 1).sum() - i
            accuracy += i / (u + 1e-10) + (1.0 if u == 0 else 0.0)
            total_i, total_u = total_i + i, total_u + u
        iou_sum += accuracy / len(units) * len(units)
        count += len(units)
    return {"oIoU": 100 * total_i / (total_u + 1e-10), "mIoU": 100 * iou_sum / count}


def rela(units):
    """refer_evaluation.py of henghuiding/ReLA; units: (prediction, layers, whether it has a target), and perhaps
    whether the head says that there is none; without a head an empty mask says so."""
    total_i = total_u = iou_sum = targeted = right = missed = 0
    passed = dict.fromkeys((0.7, 0.8, 0.9), 0)
    for prediction, layers, has_target, *head in units:
        said_nothing = head[0] if head else not prediction.any()
        truth = layers.clip(max=1)
        i, u = np.logical_and(prediction, truth).sum(), np.logical_or(prediction, truth).sum()
        if not has_target:
            if said_nothing:
                right += 1
                iou_sum += 1
            else:
                total_u += u
            continue
        targeted += 1
        if said_nothing:
            i, missed = 0, missed + 1
        value = 0.0 if u == 0 else i / u
        iou_sum, total_i, total_u = iou_sum + value, total_i + i, total_u + u
        for x in passed:
            passed[x] += value >= x
    scores = {"oIoU": 100 * total_i / total_u, "mIoU": 100 * iou_sum / len(units),
              **{f"P@{x}": 100 * n / targeted if targeted else np.nan for x, n in passed.items()}}
    if targeted < len(units):
        scores["N_acc"] = 100 * right / (len(units) - targeted)
    return scores | ({"T_acc": 100 * (targeted - missed) / targeted} if 0 < targeted < len(units) else {})


def refsegformer(refs):
    """validation.py of RefSegformer, eval_mode all, its sentences that fit; refs: per ref a list of (prediction,
    layers)."""
    total_i, total_u, per_ref, sentences = 0.0, 0.0, [], 0
    passed = dict.fromkeys((0.5, 0.6, 0.7, 0.8, 0.9), 0)
    for units in refs:
        running = np.float64(0)
        for prediction, layers in units:
            target = (layers == 1).astype(np.float64)
            i = (prediction * target).sum()
            u = (prediction + target).sum() - i
            total_i, total_u = total_i + i, total_u + u
            with np.errstate(invalid="ignore"):
                running = running + i / u
            for x in passed:
                passed[x] += running >= x
            sentences += 1
        per_ref.append(running / len(units))
    return {"oIoU": 100 * total_i / total_u, "mIoU": 100 * np.mean(per_ref),
            **{f"P@{x}": 100 * n / sentences for x, n in passed.items()}}


def first_author(refs):
    """main.py of zichengsaber/LAVT-pytorch; refs: one (prediction, layers) each."""
    total_i, total_u, ious = 0.0, 0.0, []
    for prediction, layers in refs:
        target = (layers == 1).astype(np.float64)
        i = (prediction * target).sum()
        u = (prediction + target).sum() - i
        with np.errstate(invalid="ignore"):
            ious.append(i / u)
        total_i, total_u = total_i + i, total_u + u
    with np.errstate(invalid="ignore"):
        return {"oIoU": 100 * total_i / total_u, "mIoU": 100 * np.mean(ious)}


def bilinear(values, shape, corners=False):
    """Both kinds of bilinear resizing, a row and a column at a time."""
    for axis, length in enumerate(shape):
        n = values.shape[axis]
        at = np.linspace(0, n - 1, length) if corners else (np.arange(length) + 0.5) * n / length - 0.5
        values = np.apply_along_axis(lambda line, at=at, n=n: np.interp(at, np.arange(n), line), axis, values)
    return values
