"""The web demo as users have it: the real command, a real Chromium, a client of its HTTP API, and bad input.

``python tests/inference/test_web.py`` takes the screenshot of the demo for the README.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs requirements-web.txt")
import gradio_client
import httpx

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        return trial.getsockname()[1]


@contextlib.contextmanager
def served(*arguments, end=signal.SIGINT, temporary=None):
    """The command ``web`` on a free port, ended by a signal; ``temporary``: its TMPDIR."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "mindspore_coupalign", "web", "--port", str(port), *map(str, arguments)], cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | ({"TMPDIR": str(temporary)} if temporary else {}))
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True).start()
    try:
        waited = time.time() + 300
        while not any("in a browser" in line for line in lines):
            assert process.poll() is None and time.time() < waited, "".join(lines)
            time.sleep(0.2)
        yield SimpleNamespace(url=f"http://{HOST}:{port}/", port=port, process=process, lines=lines)
    finally:
        process.send_signal(end)
        try:
            assert process.wait(60) == 0, "".join(lines)
        finally:
            process.kill()
        assert lines[-1] == "the web demo is closed\n" and "Traceback" not in "".join(lines), "".join(lines)


@pytest.fixture(scope="module", autouse=True)
def downloads(tmp_path_factory):
    """Gradio's client leaves an empty folder for each file that it has fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("downloads")))
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    with served("--max-megabytes", "2", "--max-megapixels", "4", temporary=folder) as found:
        yield found
    assert not list(folder.iterdir())  # nothing is left of uploads and answers


@pytest.fixture(scope="module")
def client(server):
    return gradio_client.Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """A green square and a red circle, where the shipped model cannot miss them."""
    rgb = np.full((64, 64, 3), 90, np.uint8)
    cv2.circle(rgb, (16, 20), 9, (220, 30, 30), -1)
    cv2.rectangle(rgb, (40, 36), (56, 52), (30, 190, 40), -1)
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def ask(client, path, text, threshold=0.5, attention=False):
    return client.predict(gradio_client.handle_file(str(path)) if path else None, text, threshold, attention,
                          api_name="/segment")


def refused(client, path, text, **more) -> str:
    with pytest.raises(Exception) as caught:
        ask(client, path, text, **more)
    message = str(caught.value)
    assert "Traceback" not in message and "coupalign-web-" not in message, message
    return message


def test_the_api_answers_as_predict_does(client, scene):
    import mindspore_coupalign as coupalign

    overlays, table, records, files, sheet = ask(client, scene, "the red circle\n\n green square \n")
    expected = coupalign.load("refshapes").predict(scene, ["the red circle", "green square"])
    assert [r["sentence"] for r in records] == ["the red circle", "green square"] == [p.sentence for p in expected]
    for record, found in zip(records, expected, strict=True):
        assert record["box"] == list(found.box) and record["rle"] == found.rle() and not record["notes"]
        assert record["score"] == pytest.approx(found.score, abs=1e-3)
        assert record["has_target"] == record["exists"] is True
        assert record["target_probability"] is record["existence"] is None
    x, y, width, height = records[0]["box"]
    assert abs(x + width / 2 - 16) < 4 and abs(y + height / 2 - 20) < 4  # it is the circle indeed
    assert len(overlays) == 2 and len(table["data"]) == 2 and [Path(f).name for f in files] == [
        "1_the-red-circle_mask.png", "2_green-square_mask.png", "answer.json"]
    np.testing.assert_array_equal(cv2.imread(files[0], cv2.IMREAD_UNCHANGED) > 0, expected[0].mask)
    assert json.loads(Path(files[2]).read_text()) == records
    assert sheet is None or sheet["value"] is None


def test_attention_and_threshold(client, scene):
    sheet = ask(client, scene, "the red circle", attention=True)[4]
    path = sheet["value"] if isinstance(sheet, dict) else sheet
    assert min(cv2.imread(path["path"] if isinstance(path, dict) else path).shape[:2]) > 100
    areas = [ask(client, scene, "the red circle", threshold=value)[2][0]["area"] for value in (0.1, 0.9)]
    assert areas[0] > areas[1] > 0


def pictures(folder: Path) -> dict:
    """File -> the words of its error."""
    from PIL import Image

    folder.mkdir()
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    whole = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))[1].tobytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(folder / "large.png"), np.zeros((2001, 2000, 3), np.uint8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    side = 60_000  # 10.8 GB of pixels in 10 kB
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(
        b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b""))
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    return {"text.png": "not an image file", "animated.gif": "a GIF; save it as PNG or JPEG", "empty.png": "empty",
            "cut.png": "the image",
            "large.png": "at most 4 megapixels", "bomb.png": "at most 4 megapixels"}


def test_bad_images_get_a_one_line_error(client, tmp_path, scene):
    for name, words in pictures(tmp_path / "bad").items():
        assert words in refused(client, tmp_path / "bad" / name, "the red circle"), name
    assert "no image" in refused(client, None, "the red circle")
    assert ask(client, scene, "the red circle")[2][0]["area"] > 0  # it goes on


@pytest.mark.parametrize(("text", "words"), [
    ("", "no sentence"), (" \n ", "no sentence"), ("???", "no words"), ("ein Hund", "none of its words"),
    ("circle\n" * 17, "17 sentences"), ("circle " * 10_000, "70000 characters"), ("红色的圆", "none of its words")])
def test_bad_sentences_get_a_one_line_error(client, scene, text, words):
    assert words in refused(client, scene, text)


@pytest.mark.parametrize("kind", ["grey", "sixteen_bit", "cmyk", "rotated", "one_pixel"])
def test_unusual_images_are_accepted(client, scene, tmp_path, kind):
    from PIL import Image

    image, path, more = Image.open(scene).convert("RGB"), tmp_path / f"{kind}.png", {}
    if kind == "grey":
        image = image.convert("L")
    elif kind == "sixteen_bit":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind == "cmyk":
        image, path = image.convert("CMYK"), tmp_path / "cmyk.jpg"
    elif kind == "rotated":
        exif = Image.Exif()
        exif[274] = 6
        image, path, more = image.resize((64, 32)), tmp_path / "rotated.jpg", {"exif": exif}
    else:
        image = image.resize((1, 1))
    image.save(path, **more)
    record = ask(client, path, "the red circle")[2][0]
    size = {"rotated": (32, 64), "one_pixel": (1, 1)}.get(kind, (64, 64))
    assert (record["width"], record["height"]) == size


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["plain", "as_file"])
def test_only_uploaded_images_are_read(server, client, scene, meta):
    """A question names its picture by a path: of an upload, not of whatever the server could read."""
    uploads = Path(ask(client, scene, "the red circle")[3][0])  # the client has copied it; it knows no folder of ours
    assert uploads.exists()
    call = f"{server.url}gradio_api/call/segment"
    for path in (scene, Path("/etc/hostname"), scene.with_name("none.png"), Path("gradio/../scene.png")):
        question = httpx.post(call, json={"data": [{"path": str(path), **meta}, "the red circle", 0.5, False]})
        answer = httpx.get(f"{call}/{question.json()['event_id']}", timeout=60).text
        assert "event: error" in answer and "upload" in answer and "complete" not in answer, answer
    sent = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", scene.read_bytes())}).json()[0]
    for path, event in ((sent, "complete"), (str(Path(sent) / ".." / ".." / ".." / "a.png"), "error")):
        question = httpx.post(call, json={"data": [{"path": path, **meta}, "the red circle", 0.5, False]})
        assert f"event: {event}" in httpx.get(f"{call}/{question.json()['event_id']}", timeout=60).text


@pytest.mark.parametrize("data", [[], [1, 2, 3, 4], [{"path": "x"}, 5, "z", False], [None, "red", [1], 0], "red"])
def test_malformed_requests_get_a_one_line_error(server, data):
    """And the fixture sees that the server has printed no traceback."""
    call = f"{server.url}gradio_api/call/segment"
    question = httpx.post(call, json={"data": data})
    if question.status_code == 200:
        answer = httpx.get(f"{call}/{question.json()['event_id']}", timeout=60).text
        assert "event: error" in answer and "malformed request" in answer
    else:
        assert question.status_code == 422


def test_a_large_upload_is_refused(server, client, scene):
    """Beyond --max-megabytes; the others go on, and the server keeps nothing of it in memory."""
    before = memory(server.process.pid)
    answer = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", bytes(100_000_000))}, timeout=60)
    assert answer.status_code == 413, answer.text
    assert memory(server.process.pid) - before < 60e6
    assert ask(client, scene, "the red circle")[2][0]["area"] > 0


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_equal_questions_at_once(server, scene):
    """Everyone gets whole files, though they hold the same."""
    def question(_):
        client = gradio_client.Client(server.url, verbose=False)
        return [len(Path(ask(client, scene, "the red circle")[3][0]).read_bytes()) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        sizes = {size for found in pool.map(question, range(4)) for size in found}
    assert len(sizes) == 1 and sizes.pop() > 100


def test_old_answers_are_forgotten(tmp_path):
    from mindspore_coupalign.web.demo import forget_old

    for name, age in (("answer-old", 100), ("answer-new", 0), ("other", 100)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    forget_old(tmp_path, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer-new", "other"]


def test_a_client_that_goes_away_harms_nobody(server, client, scene):
    for _ in range(3):
        client.submit(gradio_client.handle_file(str(scene)), "the red circle", 0.5, False, api_name="/segment")
        with socket.create_connection((HOST, server.port)) as connection:
            connection.sendall(b"POST /gradio_api/call/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{")
    assert ask(client, scene, "the red circle")[2][0]["area"] > 0


def test_a_port_in_use_and_other_mistakes(server, capsys, tmp_path):
    from mindspore_coupalign.__main__ import main

    for arguments, words in ((("--port", server.port), "choose another --port"), (("--port", 0), "between 1 and 65535"),
                             (("--model", "no_such"), "shipped: refshapes"),
                             (("--host", "no.such.host"), "no such address"),
                             (("--examples", tmp_path / "none"), "no such folder"),
                             (("--examples", tmp_path), "has no images")):
        port = () if "--port" in arguments else ("--port", free_port())
        assert main(["web", *map(str, (*arguments, *port))]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and words in line, line


# In a browser ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def chromium(width=1280, height=1180):
    """A headless Chromium that records every request."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs requirements-web.txt")
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def until(browser, script: str, seconds=120):
    """Wait until the JavaScript expression is true; its value."""
    end = time.time() + seconds
    while not (found := browser.execute_script(f"return {script}")):
        assert time.time() < end, f"{script}: {browser.execute_script('return document.body.innerText')[:2000]}"
        time.sleep(0.2)
    return found


def type_sentences(browser, text: str):
    from selenium.webdriver.common.by import By

    box = browser.find_element(By.CSS_SELECTOR, "#sentences textarea")
    box.clear()
    box.send_keys(text)


def press_segment(browser):
    from selenium.webdriver.common.by import By

    browser.find_element(By.ID, "segment").click()


def choose_example(browser, number=0):
    """Click on an example and wait until its picture and its sentences are there."""
    cells = "document.querySelectorAll('.gallery-item, .tr-body')"
    until(browser, f"{cells}.length > {number}")
    browser.execute_script(f"{cells}[{number}].click()")
    until(browser, "document.querySelector('#picture img')")
    until(browser, "document.querySelector('#sentences textarea').value.length > 0")


OVERLAY = "document.querySelector('#overlays img') && document.querySelector('#overlays img').naturalWidth"


def test_in_a_browser(server, tmp_path):
    """Open, choose an example, type, see the mask; nothing is asked of any other machine."""
    with chromium() as browser:
        browser.get(server.url)
        until(browser, "document.querySelector('#segment')")
        choose_example(browser)
        press_segment(browser)
        assert until(browser, OVERLAY) >= 64
        assert "score" in until(browser, "document.querySelector('#table').innerText").lower()
        type_sentences(browser, "zebra")
        press_segment(browser)
        until(browser, "document.body.innerText.includes('none of its words')")
        browser.save_screenshot(str(tmp_path / "page.png"))
        assert cv2.imread(str(tmp_path / "page.png")).std() > 10
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:", "ws://127"))] == []
    assert errors == []


if __name__ == "__main__":
    with served(end=signal.SIGTERM) as own, chromium(1280, 1100) as window:
        window.get(own.url)
        choose_example(window, 1)
        press_segment(window)
        until(window, OVERLAY)
        time.sleep(2)
        window.save_screenshot(str(ROOT / "docs" / "images" / "web.png"))
