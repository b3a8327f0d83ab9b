"""Serving the web demo: no request to other machines, limits, a queue, and temporary folders."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mindspore_coupalign.errors import UserError
from mindspore_coupalign.interrupts import StopRequest
from mindspore_coupalign.outputs import scratch

WAITING = 64  # requests in the queue; further ones are rejected
# The browser loads nothing from elsewhere, whatever a page of Gradio's refers to.
POLICY = ("default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
          "style-src 'self' 'unsafe-inline'; connect-src 'self' ws: data: blob:; frame-ancestors 'self'")


def check_gradio():
    """Raises UserError where the extra is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError as exc:
        raise UserError(f"the web demo needs Gradio ({exc}); install it with pip install 'mindspore_coupalign[web]', "
                        "from a clone with pip install -r requirements-web.txt") from exc


def check_port(host: str, port: int):
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
def folder() -> Iterator[Path]:
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


def serve(page, host: str, port: int, folder: Path, megabytes: int):
    """Listen until the process is asked to stop, by Ctrl-C or SIGTERM.

    Args:
        folder: of the answers' files, which are served in place: Gradio's own cache names files by content, and of
            two equal files written at once the second may be read incomplete.

    Raises:
        UserError: the port is taken.
    """
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
