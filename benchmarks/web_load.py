"""The page under load: 8 clients with 25 questions each, every answer checked; latencies and the server's memory.

    python benchmarks/web_load.py --url http://127.0.0.1:7860/ --pid PID [--clients 8] [--requests 25]

Start `coupalign web` first; needs requirements-web.txt. Half-way, one client leaves in the middle of its question, one
uploads 100 MB and one sends 10,000 words: the others must not notice.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import cv2
import gradio_client
import httpx
import numpy as np

PLACES = [(16, 20), (46, 18), (18, 46), (46, 46)]


def scene(folder: Path, number: int) -> tuple[Path, tuple]:
    """A red circle among blue squares; the file and the circle's centre."""
    rgb = np.full((64, 64, 3), 90, np.uint8)
    for place in PLACES:
        if place != PLACES[number % 4]:
            cv2.rectangle(rgb, (place[0] - 7, place[1] - 7), (place[0] + 7, place[1] + 7), (40, 60, 220), -1)
    cv2.circle(rgb, PLACES[number % 4], 8, (220, 30, 30), -1)
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path, PLACES[number % 4]


def ask(client, path, text):
    return client.predict(gradio_client.handle_file(str(path)), text, 0.5, False, api_name="/segment")[2]


def memory(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def run_client(number: int, args, folder: Path, times: list, wrong: list):
    client = gradio_client.Client(args.url, verbose=False)
    path, (x, y) = scene(folder, number)
    for _ in range(args.requests):
        start = time.perf_counter()
        try:
            left, top, width, height = ask(client, path, "the red circle")[0]["box"]
            if abs(left + width / 2 - x) > 5 or abs(top + height / 2 - y) > 5:
                wrong.append(f"client {number}: box {left, top, width, height}, circle at {x, y}")
        except Exception as exc:
            wrong.append(f"client {number}: {exc}")
        times.append(time.perf_counter() - start)


def misbehave(args, folder: Path) -> list:
    """What the three bad clients were told."""
    client = gradio_client.Client(args.url, verbose=False)
    path, _ = scene(folder, 0)
    client.submit(gradio_client.handle_file(str(path)), "the red circle", 0.5, False, api_name="/segment")
    del client
    upload = httpx.post(f"{args.url}gradio_api/upload", files={"files": ("a.png", bytes(100_000_000))}, timeout=120)
    try:
        ask(gradio_client.Client(args.url, verbose=False), path, "word " * 10_000)
        words = "answered"
    except Exception as exc:
        words = str(exc)[:80]
    return [f"100 MB: HTTP {upload.status_code}", f"10,000 words: {words}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860/")
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=25)
    args = parser.parse_args()
    times, wrong, before = [], [], memory(args.pid)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        threads = [threading.Thread(target=run_client, args=(n, args, folder, times, wrong))
                   for n in range(args.clients)]
        for thread in threads:
            thread.start()
        while len(times) < args.clients * args.requests // 2:
            time.sleep(0.2)
        for line in misbehave(args, folder):
            print(line)
        for thread in threads:
            thread.join()
    seconds = time.perf_counter() - start
    print(f"{len(times)} questions of {args.clients} clients in {seconds:.1f} s, {len(wrong)} wrong or unanswered")
    print("\n".join(wrong[:5]), end="\n" if wrong else "")
    print("latency in s: " + ", ".join(f"p{p} {np.percentile(times, p):.2f}" for p in (50, 90, 99))
          + f", max {max(times):.2f}")
    print(f"server's memory: {before:.0f} MiB before, {memory(args.pid):.0f} MiB after")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
