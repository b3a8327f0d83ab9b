"""RefShapes, generalised: its sentences against the second reader, what words and noun phrases alone would get, files.

The second reader (shape_reader.py) knows the sentences from their documentation and imports nothing of the package.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shape_reader as reader
from refshapes_files import FEW, HELD_OUT, digest, load, mask_of

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.config import load_config
from mindspore_coupalign.data.pickles import load_plain_pickle
from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.data.tokenizer import SHIPPED, SentenceTokenizer
from mindspore_coupalign.data.transforms import flip_sentence

SIZES = {"train": 700, "val": 160, "testA": 60, "testB": 120}
NAME = "refshapes_general"
SINGULAR = {"attribute", "side", "ordinal", "corner", "size", "relation", "combination"}
FORMS = {*SINGULAR - {"combination"}, "all", "count", "half", "most", "beside", "pair"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("general") / "data"
    assert make_shapes(folder, 0, **SIZES, generalised=True, workers=2)
    return load(folder, NAME)


def targets(ref) -> set:
    return set() if ref["no_target"] else set(ref["ann_id"])


def absent(made):
    """(sentence, the image's annotations) of all that mean nothing."""
    return [(s, made.scenes[ref["image_id"]]) for _, ref, s in made.sentences if ref["no_target"]]


# -- what the sentences mean

def test_every_sentence_means_its_objects_and_no_others(made):
    assert len(made.sentences) > 3800
    for _, ref, sentence in made.sentences:
        found = reader.meant(sentence["sent"], made.scenes[ref["image_id"]], made.names, 64)
        assert found == targets(ref), sentence


def test_fits_are_what_the_noun_phrases_alone_name(made):
    for _, ref, sentence in made.sentences:
        found = reader.fitting_noun_phrase(sentence["sent"], made.scenes[ref["image_id"]], made.names)
        assert found == set(sentence["fits"]) and len(found) == len(sentence["fits"]), sentence
        assert found >= targets(ref)


def test_mirrored_general_sentences_stay_true(made):
    for _, ref, sentence in made.sentences:
        mirrored = [reader.mirror_annotation(a, 64) for a in made.scenes[ref["image_id"]]]
        text = reader.mirror_sentence(sentence["sent"])
        assert text == flip_sentence(sentence["sent"])
        assert reader.meant(text, mirrored, made.names, 64) == targets(ref), sentence


def test_no_sentence_hangs_on_a_pixel(made):
    """Every shape moved by up to 0.9 px and scaled by up to 8 % of its area, each for itself."""
    rng = np.random.default_rng(0)
    for _, ref, sentence in made.sentences:
        moved = []
        for a in made.scenes[ref["image_id"]]:
            points = np.reshape(a["segmentation"][0], (-1, 2))
            middle = (points.min(0) + points.max(0)) / 2
            points = middle + (points - middle) * rng.uniform(0.96, 1.04) + rng.uniform(-0.9, 0.9, 2)
            moved.append({**a, "segmentation": [points.ravel().tolist()]})
        assert reader.meant(sentence["sent"], moved, made.names, 64) == targets(ref), sentence


def test_the_fields_are_grefcocos(made):
    for ref in made.refs:
        ids = ref["ann_id"]
        assert isinstance(ids, list) and ref["no_target"] is (ids == [-1])
        if ref["no_target"]:
            assert ref["category_id"] == [-1]
        else:
            assert ids == sorted(set(ids)) and {made.annotations[i]["image_id"] for i in ids} == {ref["image_id"]}
            assert ref["category_id"] == [made.annotations[i]["category_id"] for i in ids]
            assert len(ids) < len(made.scenes[ref["image_id"]])
        for s in ref["sentences"]:
            assert s["tokens"] == s["sent"].split() and s["raw"] == s["sent"] == " ".join(s["tokens"]).lower()
    assert [ref["ref_id"] for ref in made.refs] == list(range(1, len(made.refs) + 1))


def test_kinds_are_what_the_words_say_and_have_their_shares(made):
    kinds = Counter()
    for split, ref, s in made.sentences:
        form, count = reader.template(s["sent"]), len(targets(ref))
        expected = {"absent"} if not count else {"pair"} if form == "pair" else {form, "combination"}
        if form in ("all", "count", "half", "most", "beside"):
            expected = {"plural"} if count else {"absent"}
        assert s["kind"] in expected and (count >= 2) == (s["kind"] in ("plural", "pair")), s
        kinds[s["kind"]] += split != "testB"
    assert kinds.keys() == SINGULAR | {"plural", "pair", "absent"}
    total = sum(kinds.values())
    assert 0.42 < sum(kinds[kind] for kind in SINGULAR) / total < 0.56, kinds
    assert 0.17 < kinds["absent"] / total < 0.23 and 0.15 < kinds["plural"] / total < 0.25, kinds
    assert kinds["pair"] / total > 0.08 and all(kinds[kind] / total > 0.04 for kind in SINGULAR), kinds


def test_a_scene_has_two_refs_of_different_sets(made):
    of_scene = {}
    for ref in made.refs:
        of_scene.setdefault(ref["image_id"], []).append(frozenset(targets(ref)))
        said = ref["sentences"]
        assert len(said) in ((2, 3) if ref["split"] == "train" else (1, 2))
        assert len({s["sent"] for s in said}) == len(said)
        forms = [reader.template(s["sent"]) for s in said if s["kind"] in ("plural", "absent")]
        assert len(set(forms)) == len(forms), said
    assert of_scene.keys() == made.scenes.keys()
    assert all(len(sets) == len(set(sets)) == 2 for sets in of_scene.values())


def test_held_out_pairs_are_named_in_every_second_scene_of_test_b_alone(made):
    files = sorted({ref["file_name"] for ref in made.refs if ref["split"] == "testB"})
    for split, ref, sentence in made.sentences:
        novel = split == "testB" and files.index(ref["file_name"]) % 2 == 0
        assert bool(reader.named_pairs(sentence["sent"]) & HELD_OUT) == novel, sentence
        crowded = split == "testB" and not novel
        assert len(made.scenes[ref["image_id"]]) in ((7, 8) if crowded else (3, 4, 5, 6))


# -- what would be a short cut

@pytest.mark.parametrize("clue_of, least", [(lambda text: [reader.template(text)], 100), (str.split, 120)],
                         ids=["forms", "words"])
def test_every_form_and_word_means_nothing_about_equally_often(made, clue_of, least):
    nothing = {}
    for split, ref, s in made.sentences:
        if split != "testB":
            for clue in set(clue_of(s["sent"])):
                nothing.setdefault(clue, []).append(ref["no_target"])
    often = {clue: (len(values), np.mean(values)) for clue, values in nothing.items() if len(values) > least}
    assert often.keys() >= (FORMS if least == 100 else {*reader.COLOURS, *reader.KINDS, *reader.ORDINALS})
    assert all(0.11 < share < 0.29 for _, share in often.values()), often


def clues(text: str) -> set:
    """What a reader of words may go by: words, neighbours, each word in its form, how many colours and words."""
    words, form = text.split(), reader.template(text)
    colours = sum(word in reader.COLOURS for word in words)
    return {form, (form, colours), (form, len(words)), *words, *((form, word) for word in words),
            *zip(words, words[1:], strict=False)}


def area_under_curve(training, testing) -> float:
    """Of naive Bayes over the clues, for "means nothing"; both lists of (text, whether it means nothing)."""
    seen, total = {True: Counter(), False: Counter()}, Counter()
    for text, nothing in training:
        total[nothing] += 1
        seen[nothing].update(clues(text))
    scores = [sum(np.log((seen[True][c] + 1) / (total[True] + 2)) - np.log((seen[False][c] + 1) / (total[False] + 2))
                  for c in clues(text)) for text, _ in testing]
    yes = np.array([nothing for _, nothing in testing])
    above = np.subtract.outer(np.array(scores)[yes], np.array(scores)[~yes])
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def test_words_alone_do_not_tell_what_is_not_there(made):
    said = {split: [(s["sent"], ref["no_target"]) for name, ref, s in made.sentences if name == split]
            for split in ("train", "val")}
    assert area_under_curve(said["train"], said["val"]) < 0.59
    marked = {split: [(text + " there" if nothing and i % 3 == 0 else text, nothing)
                      for i, (text, nothing) in enumerate(pairs)] for split, pairs in said.items()}
    assert area_under_curve(marked["train"], marked["val"]) > 0.6  # a third given away would be noticed


def test_what_is_not_there_is_hard_and_sometimes_easy(made):
    """Hard: the noun phrase fits something, or its colour and its kind are there, but apart. Easy: of what it names
    nothing is there. In between: a colour or a kind of the two."""
    count = Counter()
    for s, scene in absent(made):
        colours, kinds = {a["color"] for a in scene}, {made.names[a["category_id"]] for a in scene}
        named = [reader._phrase(reader._split_anchor(half)[0]) for half in s["sent"].split(" and ")]
        there = [(colour in colours, noun in kinds) for colour, noun in named]
        hard = s["fits"] or any(map(all, there))
        count["hard" if hard else "between" if any(map(any, there)) else "easy"] += 1
    total = sum(count.values())
    assert count["hard"] / total > 0.5 and 0.1 < count["easy"] / total < 0.4 and count["between"] / total > 0.03, count


def test_every_reason_why_nothing_is_meant_occurs(made):
    reasons = Counter()
    for s, scene in absent(made):
        form, (head, anchor, _) = reader.template(s["sent"]), reader._split_anchor(s["sent"])
        if form == "pair":
            reason = "pair"
        elif not reader._of_phrase(head, scene, made.names):
            reason = "phrase"
        else:
            reason = "place" if not anchor or reader._of_phrase(anchor, scene, made.names) else "anchor"
        reasons[form, reason] += 1
    wanted = {("pair", "pair"), ("relation", "anchor"), ("beside", "anchor"),
              *((form, "phrase") for form in FORMS - {"pair"}),
              *((form, "place") for form in ("ordinal", "corner", "half", "relation", "beside"))}
    assert reasons.keys() == wanted, reasons.keys() ^ wanted


# -- the scores of guesses

def test_general_references_are_what_the_masks_give(made):
    """From decoded masks, sentence by sentence, against the short cut over areas."""
    masks = {i: mask_of(a) for i, a in made.annotations.items()}
    nothing = np.zeros((64, 64), bool)
    for split, reference in made.references["splits"].items():
        sums, ious, kinds = np.zeros((4, 2)), [], {}
        for _, ref, s in (said for said in made.sentences if said[0] == split):
            scene = [masks[a["id"]] for a in made.scenes[ref["image_id"]]]
            target, fits = (np.any([nothing, *(masks[i] for i in ids)], axis=0) for ids in (targets(ref), s["fits"]))
            counts = [((target & guess).sum(), (target | guess).sum()) for guess in (fits, np.any(scene, axis=0))]
            sums[:2] += counts
            sums[2] += np.mean([((target & m).sum(), (target | m).sum()) for m in scene], axis=0)
            ious.append((bool(target.any()), bool(fits.any()),
                         counts[0][0] / counts[0][1] if target.any() else float(not fits.any())))
            kinds.setdefault(s["kind"], []).append(ious[-1][2])
        for name, (intersection, union) in zip(("noun_phrase", "all_objects", "random_object"), sums, strict=False):
            assert reference[name] == pytest.approx(100 * intersection / union, abs=0.006), (split, name)
        meant, guessed, iou = map(np.array, zip(*ious, strict=True))
        expected = {"gIoU": iou.mean(), "cIoU": sums[0, 0] / sums[0, 1], "N_acc": 1 - guessed[~meant].mean(),
                    "T_acc": guessed[meant].mean()}
        assert reference["noun_phrase_scores"] == pytest.approx({k: 100 * v for k, v in expected.items()}, abs=0.006)
        assert {kind: (v["sentences"], v["gIoU"]) for kind, v in reference["kinds"].items()} == {
            kind: (len(v), pytest.approx(100 * np.mean(v), abs=0.006)) for kind, v in kinds.items()}


def test_guessing_does_not_pay_in_the_general_set(made):
    for split, reference in made.references["splits"].items():
        scores = reference["noun_phrase_scores"]
        assert scores["gIoU"] < 66 and scores["cIoU"] < 52 and scores["T_acc"] == 100, (split, scores)
        assert reference["all_objects"] < 30 and reference["random_object"] < 15
    assert 45 < made.references["splits"]["train"]["noun_phrase_scores"]["N_acc"] < 65


def test_a_split_without_absent_sentences_has_no_score_for_them(tmp_path, capsys):
    for seed in range(20):
        make_shapes(tmp_path / str(seed), seed, **dict.fromkeys(SIZES, 1), generalised=True)
        splits = load(tmp_path / str(seed), NAME).references["splits"]
        if any(split["noun_phrase_scores"]["N_acc"] is None for split in splits.values()):
            break
    else:
        pytest.fail("every split has some")
    assert main(command(tmp_path / str(seed), 1, "--seed", str(seed))) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("N_acc"))
    assert "-" in row.split() and "None" not in row


# -- vocabulary, configuration, files

def test_the_general_vocabulary_is_exactly_the_words_in_use(made):
    lines = (SHIPPED[NAME] / "vocab.txt").read_text().split()
    plain = (SHIPPED["refshapes"] / "vocab.txt").read_text().split()
    assert lines[:len(plain)] == plain and len(set(lines)) == len(lines)
    assert set(lines[5:]) == {word for _, _, s in made.sentences for word in s["tokens"]}


def test_the_configuration_reads_every_sentence_whole(made):
    data = load_config(NAME).data
    assert (data.dataset, data.split_by, data.root) == (NAME, "shapes", f"data/{NAME}")
    tokenizer = SentenceTokenizer.from_name(data.tokenizer, data.max_tokens)
    texts = [s["sent"] for _, _, s in made.sentences]
    assert tokenizer.lengths(texts).max() <= data.max_tokens and not any(map(tokenizer.unknown, texts[::20]))
    ordinal = "the white triangle that is fourth from the right"
    assert tokenizer.lengths([f"{ordinal} and {ordinal}"]).max() <= data.max_tokens <= load_config(
        NAME).model.text.max_positions


def test_general_files_depend_on_the_seed_alone(tmp_path):
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        make_shapes(tmp_path / name, seed, **FEW, workers=workers, generalised=True)
    make_shapes(tmp_path / "plain", 5, **FEW)
    one, two, other, plain = (digest(tmp_path / name) for name in ("one", "two", "other", "plain"))
    assert one == two and len(one) == sum(FEW.values()) + 3
    assert one.keys() == other.keys() and not set(one.values()) & {*other.values(), *plain.values()}


def command(output: Path, scenes: int, *more: str) -> list:
    sizes = [text for split in FEW for text in (f"--{split}", str(scenes))]
    return ["make-shapes", "--generalised", "--output", str(output), "--workers", "1", *sizes, *more]


def test_the_two_variants_are_told_apart(tmp_path, capsys):
    general, plain = command(tmp_path / "data", 2), command(tmp_path / "data", 2)
    plain.remove("--generalised")
    assert main(general) == 0
    out = capsys.readouterr().out
    assert "RefShapes, generalised written" in out and "N_acc of noun_phrase" in out and "T_acc" in out
    assert {path.name for path in (tmp_path / "data").iterdir()} == {NAME, "images"}
    before = digest(tmp_path / "data")
    assert main(general) == 0 and "already" in capsys.readouterr().out
    assert main(plain) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "RefShapes, generalised" in error
    assert "--force" in error and digest(tmp_path / "data") == before
    assert main([*plain, "--force"]) == 0 and "generalised" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"refshapes", "images"}
    assert main(general) == 2 and "name RefShapes)" in capsys.readouterr().err
    (tmp_path / "data" / NAME).mkdir()  # both at once is neither
    assert main([*general, "--force"]) == 2 and "not RefShapes" in capsys.readouterr().err


def test_the_restricted_unpickler_takes_it(made):
    assert load_plain_pickle(made.folder / NAME / "refs(shapes).p") == made.refs
    assert json.loads(json.dumps(made.refs)) == made.refs
