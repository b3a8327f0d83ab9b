"""Command ``web``: a web demo to try a model on one's own images (web/), served without a request to other machines."""

import argparse
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mindspore_coupalign.cli.options import add_amp_argument, add_device_argument
from mindspore_coupalign.errors import UserError
from mindspore_coupalign.inference import loading
from mindspore_coupalign.interrupts import StopRequest
from mindspore_coupalign.outputs import scratch
from mindspore_coupalign.web.demo import Limits, folder_examples, shapes_examples

WAITING = 64  # requests in the queue; further ones are rejected
# The browser loads nothing from elsewhere, whatever a page of Gradio's refers to.
POLICY = ("default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
          "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: data: blob:; frame-ancestors 'self'")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--model", default="refshapes", metavar="FILE|NAME",
                        help="a checkpoint, .mindir or .onnx file, or a shipped model's name (default: refshapes)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 opens the demo to "
                        "everyone who can reach this machine (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    parser.add_argument("--examples", metavar="DIR", help="folder of example images, with sentences in its "
                        "examples.jsonl, a line {\"image\": …, \"sentence\": …} each (default: RefShapes' scenes)")
    parser.add_argument("--max-megabytes", type=int, default=20, help="largest upload (default: 20)")
    parser.add_argument("--max-megapixels", type=int, default=50, help="largest image (default: 50)")
    add_device_argument(parser)
    add_amp_argument(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example eval.target_threshold=0.7")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    with _folder() as folder:
        _serve(args, folder)
    return 0


def _serve(args: argparse.Namespace, folder: Path):
    _check_gradio()
    _check_port(args.host, args.port)
    if min(args.max_megabytes, args.max_megapixels) < 1:
        raise UserError("--max-megabytes and --max-megapixels must be at least 1")
    path = loading.find_model(args.model)
    kind = loading.kind_of(path)
    explains = kind == loading.CHECKPOINT  # graphs return the mask only
    loading.check_of_checkpoint(path, kind, {"--amp": args.amp})
    print(f"loading and compiling {args.model} (seconds for a small network, up to two minutes for the full recipe)",
          flush=True)
    examples = folder_examples(Path(args.examples)) if args.examples else shapes_examples(folder)
    model = loading.open_model(path, kind, args.device_target, args.amp, explains, args.overrides)
    model.warm_up()
    title = f"The model is **{args.model if args.model in loading.shipped_models() else path.name}**."
    if args.model == "refshapes":
        title += " It knows simple coloured shapes and their positions, not photographs."
    from mindspore_coupalign.web.page import build

    page = build(model, title, examples, Limits(args.max_megapixels), folder, explains)
    _listen(page, args.host, args.port, folder, args.max_megabytes)


def _check_gradio():
    """Raises UserError where the extra is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as exc:
        raise UserError(f"the web demo needs Gradio ({exc}); install it with pip install 'mindspore_coupalign[web]', "
                        "from a clone with pip install -r requirements-web.txt") from exc


def _check_port(host: str, port: int):
    """Raises UserError where the port cannot be opened."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: must be between 1 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except socket.gaierror as exc:
        raise UserError(f"--host {host}: no such address ({exc.strerror})") from exc
    except OSError as exc:
        raise UserError(f"--port {port} on {host}: {exc.strerror}; choose another --port") from exc


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder for uploads and answers; Gradio, which is imported within the block, uses it too."""
    with scratch("coupalign-web-") as place:
        os.environ["GRADIO_TEMP_DIR"] = str(place / "gradio")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_OFFLINE"] = "1"
        yield place


class Policy:
    """ASGI middleware: every response carries the content security policy."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


def _listen(page, host: str, port: int, folder: Path, megabytes: int):
    """Listen until the process is asked to stop, by Ctrl-C or SIGTERM. The answers' files in ``folder`` are served in
    place: Gradio's own cache names files by content, and of two equal files written at once the second may be read
    incomplete."""
    import gradio
    from starlette.middleware import Middleware

    gradio.set_static_paths([folder])
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        page.launch(server_name=host, server_port=port, quiet=True, show_error=True, share=False, inbrowser=False,
                    max_file_size=f"{megabytes}mb", allowed_paths=[str(folder)], prevent_thread_lock=True,
                    footer_links=["api"], enable_monitoring=False, ssr_mode=False, theme=page.theme, css=page.css,
                    app_kwargs={"middleware": [Middleware(Policy)]})
    except OSError as exc:
        raise UserError(f"--port {port} on {host}: {exc}; choose another --port") from exc
    print(f"open http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/ in a browser; Ctrl-C ends it",
          flush=True)
    with StopRequest() as stop:
        while not stop.received:
            time.sleep(0.2)
    page.close(verbose=False)
    print("the web demo is closed", flush=True)
