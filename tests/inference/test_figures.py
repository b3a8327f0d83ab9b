import cv2
import numpy as np
import pytest

from mindspore_coupalign import visualize
from mindspore_coupalign.errors import UserError


@pytest.fixture
def scene():
    rgb = np.full((40, 60, 3), 120, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:30] = True
    return rgb, mask


def has_colour(picture, colour):
    return (picture == np.array(colour)).all(-1).any()


def test_overlay_outlines_the_mask_and_changes_nothing_else(scene):
    rgb, mask = scene
    drawn = visualize.overlay(rgb, mask, "the square", note="IoU 0.50")
    assert drawn.dtype == np.uint8 and drawn.shape[1] == 60 * 8 and drawn.shape[0] > 40 * 8  # 8 · 40 = 320
    assert (drawn[36 * 8 : 40 * 8] == 120).all() and (drawn[: 8 * 8] == 120).all()
    assert (drawn[12 * 8 : 28 * 8, 12 * 8 : 28 * 8] == 120).all()  # the object keeps its colour
    assert has_colour(drawn[: 40 * 8], visualize.MASK_COLOUR) and not has_colour(drawn, visualize.TRUTH_COLOUR)
    np.testing.assert_array_equal(rgb, 120)  # the input is left as it was


def test_overlay_outlines_the_truth(scene):
    rgb, mask = scene
    truth = np.roll(mask, 20, 1)
    drawn = visualize.overlay(rgb, mask, "the square", truth)
    assert has_colour(drawn[10 * 8 : 30 * 8, 48 * 8 : 52 * 8], visualize.TRUTH_COLOUR)
    assert (drawn[20 * 8, 40 * 8] == 120).all()  # an outline, not a tint


@pytest.mark.parametrize("value", [False, True])
def test_overlay_of_an_empty_and_a_full_mask(scene, value):
    assert visualize.overlay(scene[0], np.full((40, 60), value), "all").shape[1] == 480


def test_large_pictures_keep_their_size_and_thin_ones_stay_bounded():
    assert visualize.overlay(np.zeros((400, 500, 3), np.uint8), np.zeros((400, 500), bool), "a").shape[1] == 500
    assert visualize.overlay(np.zeros((4, 900, 3), np.uint8), np.zeros((4, 900), bool), "a").shape[1] == 900


def test_captions_wrap():
    narrow = np.zeros((320, 200, 3), np.uint8)
    one, many = visualize.caption(narrow, "short"), visualize.caption(narrow, "a sentence of many more words " * 4)
    assert many.shape[0] > one.shape[0] + 40 and one.shape[1] == many.shape[1] == 200
    long = visualize.caption(narrow, "x" * 500)
    assert long.shape[1] == 200 and long.shape[0] > many.shape[0]  # broken anywhere, whole
    assert visualize.caption(narrow, "short", "note").shape[0] == one.shape[0] + visualize.line_height(14)
    assert visualize.caption(narrow, "").shape == visualize.caption(narrow, " \n").shape


@pytest.mark.parametrize("text", ["the café", "größer links", "красный круг", "κόκκινο", "الدائرة"])
def test_captions_are_written_in_their_script(text):
    assert visualize.written(text, 14)[0] == text


def test_a_character_that_no_font_holds_is_written_as_its_code_point(monkeypatch):
    monkeypatch.setattr(visualize, "_system_fonts", lambda: ())
    assert visualize.written("左 left", 14)[0] == "U+5DE6 left"
    assert visualize.written("a\tb\x00c", 14)[0] == "a b c"


def test_the_systems_fonts_are_asked_for_what_the_default_lacks(monkeypatch):
    asked = []
    monkeypatch.setattr(visualize, "_system_fonts", lambda: asked.append(1) or (visualize._default_font(),))
    visualize.written("plain", 14)
    assert not asked
    visualize.written("左", 14)
    assert asked


def test_an_empty_mask_is_said_and_the_legend_shows_both_outlines(scene):
    rgb, mask = scene
    empty, whole = visualize.overlay(rgb, mask & False, "a", note=""), visualize.overlay(rgb, mask, "a", note="")
    assert empty.shape[0] == whole.shape[0] + visualize.line_height(14)
    strip = visualize.legend(300, "val")
    assert has_colour(strip, visualize.MASK_COLOUR) and has_colour(strip, visualize.TRUTH_COLOUR)


def test_heat_is_blue_at_the_least_and_red_at_the_most(scene):
    values = np.zeros((2, 2), np.float32)
    values[0, 0] = 3
    drawn = visualize.heat(scene[0], values, 192, 0, 3)
    assert min(drawn.shape[:2]) == 200  # 5 · 40
    assert drawn[0, 0, 0] > drawn[0, 0, 2] and drawn[-1, -1, 2] > drawn[0, 0, 2]
    assert visualize.heat(scene[0], np.ones((3, 3)), 192, 1, 1).shape == drawn.shape  # a map without any range
    assert min(visualize.heat(np.zeros((480, 640, 3), np.uint8), values, 192, 0, 3).shape[:2]) == 192


def test_contact_sheet_holds_every_panel():
    colours = [(10 * i, 5, 200) for i in range(1, 6)]
    panels = [np.full((20 + 10 * i, 30 + i, 3), colour, np.uint8) for i, colour in enumerate(colours)]
    sheet = visualize.contact_sheet(panels, 2)
    for panel, colour in zip(panels, colours, strict=True):
        assert (sheet == np.array(colour)).all(-1).sum() == panel.shape[0] * panel.shape[1]
    assert visualize.contact_sheet(panels[:1], 4).shape == (20 + 16, 30 + 16, 3)


def test_written_files_are_read_back(tmp_path, scene):
    rgb = scene[0].copy()
    rgb[0, 0] = (1, 2, 3)
    visualize.write_png(tmp_path / "a.png", rgb)
    visualize.write_png(tmp_path / "a.png", rgb)  # over the old one
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], rgb)
    grey = scene[1].astype(np.uint8) * 255
    visualize.write_png(tmp_path / "b.png", grey)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED), grey)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_cannot_be_written_is_named(tmp_path, scene):
    (tmp_path / "dir.png").mkdir()
    for path in (tmp_path / "dir.png", tmp_path / "missing" / "a.png"):
        with pytest.raises(UserError, match=f"{path}.*choose another"):
            visualize.write_png(path, scene[0])
    assert [p.name for p in tmp_path.iterdir()] == ["dir.png"]
