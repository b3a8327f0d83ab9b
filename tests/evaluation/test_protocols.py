"""Every protocol against the other project's rule (peer_rules.py), from the annotation files to the scores, with a
network that is a function of its word pieces; what is shared between protocols; the file of details."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import peer_rules
import pytest
from PIL import Image
from pycocotools import mask as coco
from refer_files import VOCABULARY, plain_rle, write_vocabulary

from mindspore_coupalign.config import config_from_dict
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.data.tokenizer import SentenceTokenizer
from mindspore_coupalign.data.transforms import resize_aligned
from mindspore_coupalign.evaluation import protocols, results, scoring
from mindspore_coupalign.evaluation.prompts import make_plan
from mindspore_coupalign.evaluation.results import format_table
from mindspore_coupalign.evaluation.scoring import evaluate_samples, report, report_plan
from mindspore_coupalign.runtime import Runtime

SIZE, TOKENS = 32, 8
SHAPES = [(40, 60), (50, 30), (32, 32)]  # of the images, h and w
WORDS = "left right big red square number image the of".split()
NOTHING = "triangle"  # the fake network finds nothing where a sentence names one
SPLITS = ("val", "testA")
RESOLVED = list(protocols.PROTOCOLS.values())


def box(x0, y0, x1, y1):
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Split val: nine refs with 1 to 4 sentences, overlapping parts, a part inside another, ``raw`` that spells
    otherwise, sentences longer than 8 word pieces, empty predictions. Split testA: two refs that mean nothing."""
    root = tmp_path_factory.mktemp("protocols")
    random = np.random.default_rng(5)
    folder, images = root / "tiny", root / "images" / "tiny"
    folder.mkdir(parents=True)
    images.mkdir(parents=True)
    parts = [[box(5, 5, 25, 25)], [box(2, 2, 20, 20), box(10, 10, 28, 26)], [box(8, 4, 26, 30), box(20, 4, 29, 30)],
             [box(3, 3, 27, 14)], [box(1, 1, 30, 30)], None, [box(0, 0, 14, 29)], [box(16, 2, 30, 18)],
             [box(4, 12, 24, 28), box(4, 12, 24, 20)], None, [box(2, 2, 29, 29)]]
    records, annotations, refs, sent_id = [], [], [], 0
    for i, (h, w) in enumerate(SHAPES):
        records.append({"id": i + 1, "file_name": f"{i}.png", "height": h, "width": w})
        assert cv2.imwrite(str(images / f"{i}.png"), np.full((h, w, 3), 90 * i, np.uint8))
    for r, segmentation in enumerate(parts):
        image = r % 3
        if segmentation is None:
            segmentation = plain_rle(np.zeros(SHAPES[image], np.uint8))
        annotations.append({"id": 70 + r, "image_id": image + 1, "segmentation": segmentation})
        sentences = []
        for k in range(1 + r % 4):
            sent = " ".join(random.choice(WORDS, 3 + 7 * int((r + k) % 4 == 0) + k))
            sent = f"{NOTHING} {sent}" if (r, k) in ((1, 1), (5, 1), (6, 2), (9, 0), (9, 1)) else sent
            raw = sent if k % 2 else sent.title() + " of"  # of: another reading, capitals: none
            sentences.append({"sent_id": sent_id, "sent": sent, "raw": raw})
            sent_id += 1
        refs.append({"ref_id": 500 + r, "ann_id": 70 + r, "image_id": image + 1, "sentences": sentences,
                     "split": "testA" if r in (5, 9) else "val"})
    nothing = {"ann_id": [-1], "no_target": True}
    written = [ref | nothing if parts[r] is None else ref for r, ref in enumerate(refs)]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(written, protocol=2))
    (folder / "instances.json").write_text(json.dumps({"images": records, "annotations": annotations}))
    data = read_refer(root, "tiny", "unc")
    tokenizer = SentenceTokenizer.from_name(str(write_vocabulary(root / "vocabulary")), TOKENS)
    config = config_from_dict({"data": {"image_size": SIZE, "max_tokens": TOKENS, "workers": 1},
                               "eval": {"batch_size": 4}}, "test")
    return SimpleNamespace(data=data, refs=refs, annotations={a["id"]: a for a in annotations}, tokenizer=tokenizer,
                           config=config, samples=data.split("val"))


ANGLE = VOCABULARY.index("##angle") + 1


def field(pieces) -> np.ndarray:
    """The fake network: logits (SIZE, SIZE), smooth, a function of the word pieces that it sees and of nothing else:
    ids + 1, 0 where padding is masked."""
    random = np.random.default_rng([int(p) for p in pieces])
    coarse = random.normal(0, 3, (5, 5)).astype(np.float32)
    smooth = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return smooth - 50 if ANGLE in pieces else smooth + 1


class Network:
    """Counts what it computes."""

    uint8 = False

    def __init__(self):
        self.seen = []

    def __call__(self, length):
        tokens = length + 3  # padding must not matter
        def model(image, ids, word_mask):
            assert image.shape == (4, 3, SIZE, SIZE) and ids.shape == word_mask.shape == (4, tokens)
            rows = [(p + 1)[: np.flatnonzero(m)[-1] + 1] * m[: np.flatnonzero(m)[-1] + 1]
                    for p, m in zip(ids, word_mask, strict=True)]
            self.seen += [tuple(row) for row in rows if len(row) > 1]
            return np.stack([field(row) for row in rows])[:, None]
        return tokens, model


def scored(world, names, *, split="val", keep=None, runtime=None, network=None):
    chosen = [protocols.resolve(protocol, world.config) for protocol in protocols.choose(names)]
    plan = make_plan(world.data, world.data.split(split), world.tokenizer, chosen)
    counts = scoring.score_plan(network or Network(), plan, chosen, world.data, world.tokenizer, world.config,
                                keep=keep, runtime=runtime)
    return report_plan(world.data, plan, chosen, counts, TOKENS), plan, counts


@pytest.fixture(scope="module")
def result(world):
    return {split: scored(world, ["all"], split=split)[0] for split in SPLITS}


def layers(world, r) -> np.ndarray:
    """As REFER's getMask: how many parts cover each pixel."""
    annotation = world.annotations[world.refs[r]["ann_id"]]
    h, w = SHAPES[annotation["image_id"] - 1]
    parts = annotation["segmentation"]
    rles = coco.frPyObjects(parts, h, w) if isinstance(parts, list) else [coco.frPyObjects([parts], h, w)[0]]
    return sum(coco.decode(rle).astype(int) for rle in rles)


def encode(world, text, keeps_sep) -> list:
    pieces = world.tokenizer._tokenizer.encode(text).ids
    if len(pieces) <= TOKENS:
        return pieces
    return pieces[: TOKENS - 1] + pieces[-1:] if keeps_sep else pieces[:TOKENS]


def logits(world, text, keeps_sep) -> np.ndarray:
    return field(np.array(encode(world, text, keeps_sep)) + 1)


def squashed(layers, kind) -> np.ndarray:
    """As LAVT resizes its target: PIL, nearest."""
    truth = {"single": layers == 1, "union": layers > 0}[kind].astype(np.uint8)
    return np.array(Image.fromarray(truth).resize((SIZE, SIZE), Image.NEAREST)).astype(int)


def refs_of(world, split) -> list:
    return [(r, ref) for r, ref in enumerate(world.refs) if ref["split"] == split]


def expected(world, name, split) -> dict:
    """The project's scores, computed from the annotation files with its own rules."""
    refs = refs_of(world, split)
    if name == "lavt":
        return peer_rules.lavt([(logits(world, s["raw"], False) > 0, squashed(layers(world, r), "single"))
                                for r, ref in refs for s in ref["sentences"]])
    if name == "rela":
        return peer_rules.rela([(logits(world, s["raw"], False) > 0, squashed(layers(world, r), "union"),
                                 layers(world, r).any()) for r, ref in refs for s in ref["sentences"]])
    if name in ("cris", "evf-sam"):
        return expected_at_the_images_size(world, name, refs)
    return expected_with_aligned_corners(world, name, refs)


def expected_at_the_images_size(world, name, refs) -> dict:
    if name == "cris":
        def mask(text, shape):
            probability = 1 / (1 + np.exp(-logits(world, text, True)))
            return cv2.resize(probability, shape[::-1], interpolation=cv2.INTER_CUBIC) > 0.35
        return peer_rules.cris([(mask(s["sent"], layers(world, r).shape), layers(world, r))
                                for r, ref in refs for s in ref["sentences"]])
    images = {}
    for r, ref in refs:
        for s in ref["sentences"]:
            values = logits(world, s["sent"].strip().lower(), True)
            images.setdefault(ref["image_id"], []).append(
                (peer_rules.bilinear(values, layers(world, r).shape) > 0, layers(world, r)))
    return peer_rules.evf_sam(list(images.values()))


def expected_with_aligned_corners(world, name, refs) -> dict:
    def aligned(values, r):
        return peer_rules.bilinear(values, layers(world, r).shape, corners=True) > 0, layers(world, r)

    if name == "refsegformer":
        return peer_rules.refsegformer([[aligned(logits(world, s["raw"], False), r) for s in ref["sentences"]]
                                        for r, ref in refs])
    if name == "ref-averaged":
        return peer_rules.first_author([
            aligned(np.mean([logits(world, s["raw"], False) for s in ref["sentences"]], 0), r) for r, ref in refs])
    if name == "ref-concatenated":
        def interleaved(ref):
            table = np.zeros((TOKENS, len(ref["sentences"])), int)  # (T, S), 0: masked padding, else id + 1
            for k, s in enumerate(ref["sentences"]):
                pieces = encode(world, s["raw"], False)
                table[: len(pieces), k] = np.array(pieces) + 1
            row = table.reshape(-1)
            return field(row[: np.flatnonzero(row)[-1] + 1])
        return peer_rules.first_author([aligned(interleaved(ref), r) for r, ref in refs])

    assert name == "ref-joined"

    def joined(ref):
        inner = [piece for s in ref["sentences"] for piece in encode(world, s["raw"], True)[1:-1]]
        ends = encode(world, "", True)
        return field(np.array([ends[0], *inner, ends[1]]) + 1)
    return peer_rules.first_author([aligned(joined(ref), r) for r, ref in refs])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", [name for name in protocols.PROTOCOLS if name != "sentence"])
def test_a_protocol_scores_as_its_project_does(world, result, name, split):
    wanted = expected(world, name, split)
    found = dict(result[split]["protocols"][name])
    refs = refs_of(world, split)
    assert found.pop("samples") == (len(refs) if name.startswith("ref-")
                                    else sum(len(ref["sentences"]) for _, ref in refs))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=1e-3, nan_ok=True), key


def test_the_protocols_differ_where_their_rules_do(result):
    """The set of the test can tell them apart."""
    found, empty = (result[split]["protocols"] for split in SPLITS)
    values = {name: scores["oIoU"] for name, scores in found.items() if "oIoU" in scores}
    assert len(set(values.values())) == len(values), values
    assert len({found[name]["mIoU"] for name in values}) == len(values)
    # three empty predictions, one that is not; CRIS and LAVT give all of them 0, RefSegformer 0/0
    assert {name: scores["mIoU"] for name, scores in empty.items() if not name.startswith("ref")} == {
        "lavt": 0, "cris": 0, "evf-sam": 75, "rela": 75}
    assert np.isnan(empty["refsegformer"]["mIoU"]) and empty["rela"]["N_acc"] == 75


def squares(inter, union):
    """A prediction and ground truth with this intersection and union."""
    prediction, truth = np.zeros((1, 100), bool), np.zeros((1, 100), int)
    prediction[0, :union] = True
    truth[0, :inter] = 1
    return prediction, truth


EDGES = [(i, u) for u in (10, 20, 100) for i in (u * n // 10 for n in range(5, 10))] + [(99, 100), (1, 2), (3, 5)]


@pytest.mark.parametrize("name", ["lavt", "cris", "rela", "refsegformer"])
def test_exact_thresholds_count_as_they_do_there(name):
    units = [squares(*edge) for edge in EDGES]
    inter, union = np.array(EDGES).T
    refs = np.arange(len(EDGES)) // 3
    every = np.ones(len(EDGES), bool)
    found = protocols.count(protocols.PROTOCOLS[name], inter, union, refs, every, every)
    if name == "refsegformer":
        wanted = peer_rules.refsegformer([units[k : k + 3] for k in range(0, len(units), 3)])
    elif name == "rela":
        wanted = peer_rules.rela([(*unit, True) for unit in units])
    else:
        wanted = getattr(peer_rules, name)(units)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-3)


def test_the_pixel_threshold_is_exclusive():
    """p > 0.35 and p > 0.5: a pixel of exactly that probability is outside."""
    at = np.float32(np.log(0.35 / 0.65))
    probability = 1 / (1 + np.exp(-at))
    while probability != np.float32(0.35):
        at = np.nextafter(at, np.float32(0 if probability < np.float32(0.35) else -1))
        probability = np.float32(1 / (1 + np.exp(-at)))
    flat = np.full((SIZE, SIZE), at, np.float32)
    cris, lavt = protocols.PROTOCOLS["cris"], protocols.PROTOCOLS["lavt"]
    assert not protocols.predicted_mask(cris, flat, None, (SIZE, SIZE), "image").any()
    above = flat + np.float32(1e-5)
    assert protocols.predicted_mask(cris, above, None, (SIZE, SIZE), "image").all()
    assert not protocols.predicted_mask(lavt, np.zeros((SIZE, SIZE), np.float32), None, (SIZE, SIZE), "input").any()
    assert protocols.predicted_mask(lavt, above + 1, None, (SIZE, SIZE), "input").all()


@pytest.mark.parametrize("shape", [(40, 60), (7, 5), (1, 33), (32, 32)])
def test_aligned_resizing(shape):
    values = np.random.default_rng(1).normal(size=(SIZE, SIZE - 3)).astype(np.float32)
    np.testing.assert_allclose(resize_aligned(values, shape), peer_rules.bilinear(values, shape, corners=True),
                               atol=1e-5)
    torch = pytest.importorskip("torch")
    reference = torch.nn.functional.interpolate(torch.tensor(values)[None, None], shape, mode="bilinear",
                                                align_corners=True)
    np.testing.assert_allclose(resize_aligned(values, shape), reference[0, 0].numpy(), atol=1e-5)


def test_protocol_sentence_is_what_validation_computes(world):
    class Model:
        def __call__(self, *tensors):
            logits = Network()(TOKENS - 3)[1](*(tensor.asnumpy() for tensor in tensors))
            return SimpleNamespace(asnumpy=lambda: logits)

        def set_train(self, _):
            pass

    alone = report(world.data, evaluate_samples(Model(), world.data, world.samples, world.tokenizer, world.config))
    found = scored(world, ["lavt", "sentence"])[0]
    assert {key: found[key] for key in alone} == alone and alone["image"]["samples"] == len(world.samples)


def test_forward_passes_are_shared(world):
    network, alone = Network(), Network()
    scored(world, ["sentence"], network=alone)
    readings = {(r, tuple(encode(world, s["sent"], True))) for r, ref in refs_of(world, "val")
                for s in ref["sentences"]}
    assert len(alone.seen) == len(readings)
    for names in (["sentence", "evf-sam", "cris"], ["cris"]):  # sent, which is in lower case here: nothing to add
        network.seen.clear()
        scored(world, names, network=network)
        assert sorted(network.seen) == sorted(alone.seen)
    readings |= {(r, tuple(encode(world, s["raw"], False))) for r, ref in refs_of(world, "val")
                 for s in ref["sentences"]}
    network.seen.clear()
    scored(world, ["sentence", "cris", "lavt", "rela", "refsegformer", "ref-averaged"], network=network)
    assert len(network.seen) == len(readings) < 2 * len(world.samples)
    network.seen.clear()
    scored(world, ["ref-averaged", "ref-concatenated"], network=network)
    # a single sentence is its own concatenation
    several = sum(len(ref["sentences"]) > 1 for _, ref in refs_of(world, "val"))
    assert len(network.seen) == several + len({(r, tuple(encode(world, s["raw"], False)))
                                               for r, ref in refs_of(world, "val") for s in ref["sentences"]})


def test_ranks_share_the_refs(world, monkeypatch):
    """Each of three ranks counts its refs alone; their sum is one rank's result, and so are the details."""
    monkeypatch.setattr(scoring, "all_reduce_sum", lambda array, runtime: array)
    kept, whole, parts, lines = [], [], [], []
    _, plan, one = scored(world, ["all"], keep=whole)
    for rank in range(3):
        kept.append([])
        parts.append(scored(world, ["all"], keep=kept[rank], runtime=Runtime("CPU", rank, 3))[2])
        lines.append(results.detail_lines(world.data, "val", plan, kept[rank], "sent", TOKENS))
    for key, counts in one.items():
        np.testing.assert_array_equal(sum(part[key] for part in parts), counts)
    monkeypatch.setattr(results, "gather", lambda own, runtime: ["\n".join(part).encode() for part in lines])
    alone = results.detail_lines(world.data, "val", plan, whole, "sent", TOKENS)
    assert results.gather_details([], None) == [line.partition(" ")[2] for line in sorted(
        alone, key=lambda line: int(line.partition(" ")[0]))]
    assert len(alone) == len(world.samples)


def test_names_are_checked():
    assert [p.name for p in protocols.choose(["lavt", "cris", "lavt"])] == ["lavt", "cris"]
    assert protocols.choose(["all"]) == RESOLVED


def test_the_table_shows_what_a_protocol_reports(result):
    header, *lines = format_table("tiny", {"val": result["testA"]}).splitlines()
    names = header.split()[-9:]
    rows = {line[24:42].strip(): dict(zip(names, line.split()[-9:], strict=True)) for line in lines}
    assert names == ["oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "N_acc", "T_acc"]
    assert list(rows)[:2] == ["image's own size", "network's input"] and len(rows) == 1 + len(protocols.PROTOCOLS)
    missing = {name: [column for column, cell in row.items() if cell == "-"] for name, row in rows.items()}
    assert missing["cris"] == ["oIoU", "N_acc", "T_acc"] and missing["lavt"] == ["N_acc", "T_acc"]
    assert missing["evf-sam"] == names[2:] and missing["rela"] == ["P@0.5", "P@0.6", "T_acc"]
    assert missing["image's own size"] == ["T_acc"]  # no sentence here means anything
    assert rows["rela"]["N_acc"] == "75.00" and "nan" in rows["ref-averaged"].values()
    assert "N_acc" not in format_table("tiny", {"val": result["val"]})


def test_conventions_are_named_in_full(world):
    for protocol in RESOLVED:
        found = protocols.conventions(protocol, world.config)
        assert "" not in (found["text"], found["overlap"]) and found["threshold"] and found["max_tokens"] == TOKENS
        json.dumps(found, allow_nan=False)
        assert protocol.name in protocols.describe(protocol)


COLUMNS = ("protocol", "scored once", "text", "where cut", "compared at", "resized", "pixel inside where",
           "parts overlap", "two empty masks", "mIoU over", "P@X", "its names")


def markdown() -> str:
    """The table of docs/protocols.md."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, protocols.PROTOCOLS.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(p: protocols.Protocol) -> list[str]:
    field = p.text or "`data.sentence_field`"
    thresholds = ", ".join(f"{x:.1f}".lstrip("0") for x in p.thresholds)
    of_sum = ", of the ref's running sum" if p.running else ""
    return [f"`{p.name}`", p.unit if p.prompt == protocols.SENTENCE else f"{p.unit}: {p.prompt}",
            field + (", lower case" if p.lower else ""), p.cut,
            " and ".join(protocols.SIZE_NAMES[size] for size in p.sizes),
            p.resize if protocols.IMAGE in p.sizes else "-",
            f"p > {'`eval.threshold`' if p.threshold is None else p.threshold}",
            p.overlap or "`data.overlap`", p.empty, p.mean,
            f"{p.comparison} {thresholds}{of_sum}" if thresholds else "-",
            ", ".join(f"{its} = {ours}" for ours, its in p.names) or "-"]


def test_the_documentation_holds_the_table():
    text = (Path(__file__).resolve().parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert markdown() in text
    assert set(re.findall(r"`([a-z-]+)`", markdown())) == set(protocols.PROTOCOLS)
