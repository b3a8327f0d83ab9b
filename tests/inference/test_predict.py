"""The Predictor and the commands predict and show, on a network with random weights."""

import re
import shutil

import cv2
import mindspore as ms
import numpy as np
import pytest
import yaml
from conftest import SENTENCES
from PIL import Image
from refer_files import refcoco_mini, write_refer
from tiny_network import TINY, pynative, tiny_config

from mindspore_coupalign.__main__ import main
from mindspore_coupalign.build import build_model
from mindspore_coupalign.cli import predict, show
from mindspore_coupalign.data.images import read_rgb
from mindspore_coupalign.data.refer import read_refer
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.evaluation.metrics import overlap
from mindspore_coupalign.evaluation.scoring import evaluate_samples
from mindspore_coupalign.inference.cells import WithOutputs
from mindspore_coupalign.inference.model import Predictor, notes_of
from mindspore_coupalign.inference.predictions import Prediction
from mindspore_coupalign.visualize import attention_sheet
from mindspore_coupalign.weights.checkpoint import named_arrays, save_checkpoint

MINI = refcoco_mini()


@pytest.fixture(scope="session")
def tiny_refer(tmp_path_factory):
    return write_refer(tmp_path_factory.mktemp("refer"))


@pytest.fixture
def sideways(tmp_path, picture):
    """The photograph's file turned by 90°, with the EXIF orientation that turns it back."""
    stored = cv2.rotate(picture.rgb, cv2.ROTATE_90_COUNTERCLOCKWISE)
    jpeg = cv2.imencode(".jpg", stored[..., ::-1])[1].tobytes()
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"  # orientation 6
    exif = b"Exif\0\0" + tiff
    path = tmp_path / "side ways.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    return path


def one_line_error(capsys, *arguments):
    """Run a command that must end with exit code 2; its error, without its beginning."""
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err[7:]


def test_prediction_is_at_the_images_size_and_depends_on_the_words(tiny_restored, picture):
    first, second = tiny_restored.predictor.predict(picture.rgb, list(SENTENCES))
    for found, sentence in zip((first, second), SENTENCES, strict=True):
        assert found.sentence == sentence and found.unknown == [] and not found.truncated and found.seconds > 0
        assert found.mask.shape == found.probability.shape == picture.rgb.shape[:2]
        assert found.mask.dtype == bool and found.probability.dtype == np.float32
        assert 0 <= found.probability.min() < 0.5 < found.probability.max() <= 1
        np.testing.assert_array_equal(found.mask, found.probability > 0.5)
    assert (first.mask != second.mask).mean() > 0.01
    alone = tiny_restored.predictor.predict(picture.rgb, [SENTENCES[1]])[0]
    np.testing.assert_allclose(alone.probability, second.probability, atol=1e-6)
    np.testing.assert_array_equal(alone.mask, second.mask)


def test_prediction_equals_evaluation(tiny_restored, tiny_refer):
    data = read_refer(tiny_refer, "tiny", "unc")
    config = tiny_config("eval.batch_size=1")
    samples = np.arange(4)
    scores = evaluate_samples(tiny_restored.model, data, samples, tiny_restored.tokenizer, config)
    np.testing.assert_array_equal(scores["sample"], samples)
    for s, expected in zip(samples, scores["image"], strict=True):
        r = int(data.sentence_ref[s])
        found = tiny_restored.predictor.predict(data.read_image(r), [data.sentence(s)])[0]
        assert overlap(found.mask, data.mask(r)) == tuple(expected)
    assert 0 < scores["image"][:, 0].sum() < scores["image"][:, 1].sum()


def test_any_kind_of_picture_and_one_sentence_as_text(tiny_restored, picture, sideways):
    predict = tiny_restored.predictor.predict
    expected = predict(picture.rgb, [SENTENCES[0]])[0].probability
    for image in (picture.path, str(picture.path), Image.open(picture.path),
                  np.dstack([picture.rgb, np.full(picture.rgb.shape[:2], 255, np.uint8)])):
        found = predict(image, SENTENCES[0])
        assert len(found) == 1 and found[0].sentence == SENTENCES[0]
        np.testing.assert_array_equal(found[0].probability, expected)
    grey = picture.rgb[..., 0]
    np.testing.assert_array_equal(predict(grey, SENTENCES[0])[0].mask,
                                  predict(np.dstack([grey] * 3), SENTENCES[0])[0].mask)
    for image in (sideways, Image.open(sideways)):
        assert predict(image, SENTENCES[0])[0].mask.shape == (60, 90)
    for image, sentences in ((picture.rgb / 255, "red"), (picture.rgb.transpose(2, 0, 1), "red"), (picture.rgb, []),
                             (picture.rgb, [3])):
        with pytest.raises(UserError, match="^(image|sentences)"):
            predict(image, sentences)


def test_threshold_is_the_configurations(tiny_restored, picture):
    config = tiny_config("eval.threshold=0.6")
    predictor = Predictor.from_model(tiny_restored.model, tiny_restored.tokenizer, config)
    strict = predictor.predict(picture.rgb, ["red circle"])[0]
    assert 0 < strict.mask.sum() < (strict.probability > 0.5).sum()
    np.testing.assert_array_equal(strict.mask, strict.probability > 0.6)


def test_sentences_are_checked_before_the_network_runs(tiny_restored, picture):
    def network(*_):
        raise AssertionError("compiled for nothing")

    predictor = Predictor.from_model(network, tiny_restored.tokenizer, tiny_restored.config)
    for empty in ("", "  \n"):
        with pytest.raises(UserError, match="empty; write what the mask shall cover"):
            predictor.predict(picture.rgb, ["red circle", empty])
    with pytest.raises(UserError, match=r"'zebra giraffe!': none of its words is in .* \(zebra, giraffe"):
        predictor.predict(picture.rgb, ["red circle", "zebra giraffe!"])
    tiny_restored.predictor.predict(picture.rgb, ["", "zebra"], strict=False)  # as evaluate scores them


def test_unknown_words_and_long_sentences_are_reported(tiny_restored, picture):
    found = tiny_restored.predictor.predict(picture.rgb, ["the Zebra left of red circle", "red " * 20])
    assert found[0].unknown == ["Zebra"] and not found[0].truncated  # 8 word pieces with [CLS] and [SEP]
    assert notes_of(found[0])[0].endswith("read as unknown: Zebra")
    assert found[1].truncated and "cut off" in notes_of(found[1])[-1]
    assert notes_of(tiny_restored.predictor.predict(picture.rgb, ["red circle"])[0]) == []


def test_details_add_up(tiny_checkpoint, tiny_restored, picture):
    found = Predictor.from_checkpoint(tiny_checkpoint, details=True).predict(picture.rgb, [SENTENCES[0]])[0]
    plain = tiny_restored.predictor.predict(picture.rgb, [SENTENCES[0]])[0]
    np.testing.assert_allclose(found.probability, plain.probability, atol=1e-5)
    details = found.details
    assert plain.details is None and details.pieces == ["[CLS]", "the", "red", "circle", "[SEP]"]
    assert {stage: maps.shape for stage, maps in details.attention.items()} == {
        i: (5, 64 // 2 ** (i + 1), 64 // 2 ** (i + 1)) for i in (1, 2, 3, 4)}
    for maps in details.attention.values():  # a pixel's attention is spent on the words, nothing on padding
        np.testing.assert_allclose(maps.sum(0), 1, atol=1e-5)
    assert details.proposals.shape == (6, 16, 16) and details.weights.sum() == pytest.approx(1, abs=1e-5)
    sheet = attention_sheet(found)
    assert sheet.dtype == np.uint8 and 5 * 192 < sheet.shape[1] < 2000 and sheet.shape[0] > 6 * 192


def test_details_of_a_network_without_alignment(tiny_restored, picture, tmp_path):
    overrides = ("model.sentence_mask=false", "model.fusion.stages=[]")
    config = tiny_config(*overrides)
    model = build_model(config, tiny_restored.tokenizer.vocab_size)
    path = tmp_path / "plain.safetensors"
    save_checkpoint(path, named_arrays(model.get_parameters(), "model"), config, tiny_restored.tokenizer.to_json(), {})
    with pynative():
        found = Predictor.from_checkpoint(path, details=True).predict(picture.rgb, ["red circle"])[0]
    assert found.details.attention == {} and len(found.details.proposals) == 0
    assert attention_sheet(found).shape[1] > 90


def test_details_of_lavt_have_all_stages(tiny_restored, picture):
    config = tiny_config("model.fusion.name=pixel_word", "model.sentence_mask=false")
    model = build_model(config, tiny_restored.tokenizer.vocab_size).set_train(False)
    predictor = Predictor.from_model(WithOutputs(model), tiny_restored.tokenizer, config)
    with pynative():
        details = predictor.predict(picture.rgb, ["red circle"])[0].details
    assert list(details.attention) == [1, 2, 3, 4] and details.attention[4].shape == (4, 2, 2)


def test_mask_in_words():
    mask = np.zeros((10, 20), bool)
    assert predict.describe_mask(Prediction("a", mask, mask, 0, [], False)) == "nothing predicted (empty mask)"
    mask[2:4, 5:15] = True
    assert predict.describe_mask(Prediction("a", mask, mask, 0, [], False)) == "10.0 % of the image, x 5-14, y 2-3"


def test_the_command_on_a_photograph_held_sideways(command_line, tiny_checkpoint, tiny_restored, sideways, tmp_path):
    output = tmp_path / "new" / "folder"
    texts = ["the RED circle", "zebra or square?"]
    done = command_line("predict", "--checkpoint", tiny_checkpoint, "--image", sideways, "--text", texts[0], "--text",
                        texts[1], "--output", output, "--device-target", "CPU")
    assert done.code == 0, done.err
    assert re.search(r"90 x 60 pixels; loaded in [\d.]+ s, compiled in [\d.]+ s", done.out)
    assert "warning: 'zebra or square?': not in the network's vocabulary" in done.err and "zebra" in done.err
    stems = ["side ways_1_the-red-circle", "side ways_2_zebra-or-square"]
    assert sorted(p.name for p in output.iterdir()) == sorted(
        ["predictions.jsonl", *(f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay"))])
    upright = read_rgb(sideways, upright=True)
    assert upright.shape == (60, 90, 3)
    for stem, found in zip(stems, tiny_restored.predictor.predict(upright, texts), strict=True):
        written = cv2.imread(str(output / f"{stem}_mask.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written, found.mask * np.uint8(255))
        assert predict.describe_mask(found) in done.out


@pytest.mark.skipif(MINI is None, reason="no real photographs here")
def test_a_real_photograph(tiny_restored):
    data = read_refer(MINI, "refcoco", "unc")
    image = data.read_image(0)
    found = tiny_restored.predictor.predict(image, ["the object on the left"])[0]
    assert found.mask.shape == image.shape[:2] == data.mask(0).shape


def test_bad_files_and_options_are_named(tiny_checkpoint, picture, tmp_path, capsys):
    whole = tiny_checkpoint.read_bytes()
    bad = {"text.safetensors": b"just a text\n" * 40, "short.safetensors": whole[: len(whole) // 2],
           "flipped.safetensors": whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:]}
    output = ("--image", picture.path, "--text", "red circle", "--output", tmp_path / "out")
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        error = one_line_error(capsys, "predict", "--checkpoint", tmp_path / name, *output)
        assert name in error and re.search("not a checkpoint|checksum", error)
    assert "no such checkpoint" in one_line_error(capsys, "predict", "--checkpoint", tmp_path / "none", *output)
    error = one_line_error(capsys, "predict", "--mindir", "m", "--attention", *output)
    assert "--attention needs a checkpoint" in error
    assert "--amp needs a checkpoint" in one_line_error(capsys, "predict", "--mindir", "m", "--amp", "O0", *output)
    (tmp_path / "file").touch()
    one_line_error(capsys, "predict", "--checkpoint", tiny_checkpoint, *output[2:], "--image", tmp_path / "file")
    for broken in (("--output", tmp_path / "file"), ("--text", "")):
        one_line_error(capsys, "predict", "--checkpoint", tiny_checkpoint, *output, *broken)
    for source in ((), ("--checkpoint", tiny_checkpoint, "--mindir", "m")):  # exactly one
        with pytest.raises(SystemExit) as caught:
            main(["predict", *map(str, source), *map(str, output)])
        assert caught.value.code == 2


@pytest.mark.skipif(ms.device_context.gpu.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tiny_checkpoint, picture, tmp_path, capsys):
    error = one_line_error(capsys, "predict", "--checkpoint", tiny_checkpoint, "--image", picture.path,
                           "--text", "star", "--output", tmp_path, "--device-target", "GPU")
    assert "--device-target GPU" in error and "--device-target CPU" in error


def test_a_checkpoint_of_another_configuration(tiny_checkpoint, tiny_refer, tmp_path, capsys):
    other = TINY | {"model": TINY["model"] | {"decoder": {"dim": 32}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    error = one_line_error(capsys, "evaluate", f"data.root={tiny_refer}", "data.dataset=tiny", "data.split_by=unc",
                           "--config", tmp_path / "other.yaml", "--checkpoint", tiny_checkpoint, "--split", "val")
    assert "another configuration" in error and str(tiny_checkpoint) in error


def test_show_refuses_pictures_of_another_size(tmp_path):
    """As evaluate does."""
    data = read_refer(write_refer(tmp_path), "tiny", "unc")
    sample = int(data.split("train")[0])
    file = data.image_path(data.sentence_ref[sample])
    assert cv2.imwrite(str(file), np.full((20, 30, 3), 90, np.uint8))
    with pytest.raises(UserError, match=f"{file.name}: 30 x 20 pixels, not 60 x 40 as instances.json says"):
        show._panel(data, None, sample, tiny_config().data)


def test_show_draws_three_sheets(tiny_checkpoint, tiny_refer, tmp_path, capsys):
    data = (f"data.root={tiny_refer}", "data.dataset=tiny", "data.split_by=unc", "eval.batch_size=1")
    show = ("show", "--checkpoint", str(tiny_checkpoint), "--split", "train")
    assert main([*show, *data, "--count", "3", "--output", str(tmp_path / "a")]) == 0
    assert "6 sentences, mIoU" in capsys.readouterr().out
    sheets = {name: cv2.imread(str(tmp_path / "a" / f"{name}.png")) for name in ("best", "worst", "random")}
    panel = 60 * 8  # the images' 60 pixels enlarged 8 times
    assert sheets["best"].shape[1] == sheets["worst"].shape[1] == 2 * panel + 3 * 8  # two images, however many refs
    assert sheets["random"].shape[1] == 3 * panel + 4 * 8
    assert (sheets["best"] != sheets["worst"]).any()
    error = one_line_error(capsys, *show, *data, "--count", "1", "--output", tmp_path / "a")
    assert "best.png: exists already (and 2 more); add --overwrite" in error
    shutil.rmtree(tmp_path / "a")
    assert "no split 'none'" in one_line_error(capsys, *show[:-1], "none", *data, "--output", tmp_path / "a")
    assert "--count must be" in one_line_error(capsys, *show, "--count", "0", "--output", tmp_path / "a")
