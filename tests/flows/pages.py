"""Pictures of the servers' pages in headless Chromium."""

import re
import shutil
import subprocess
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError

from tests.flows.server import until

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=20000"),
]
# MLflow opens its assistant over the page of whoever comes for the first time
GREETED = b'<head><script>localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")</script>'


def find_browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def take_picture(address: str, file: Path, profile: Path, shown: Sequence[str], height: int = 1100) -> None:
    """Write the page as PNG once it shows all of these phrases: a page that still loads is asked for again."""
    flags = [str(find_browser()), *FLAGS, f"--user-data-dir={profile}", f"--window-size=1400,{height}"]

    def look() -> bool:
        command = [*flags, f"--screenshot={file}", "--dump-dom", address]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)
        words = unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", done.stdout, flags=re.DOTALL)).split()
        said.append(" ".join(words))
        return all(phrase in said[-1] for phrase in shown)

    said: list[str] = []
    try:
        until(look)
    except AssertionError:
        raise AssertionError(f"{address} does not show all of {shown}, but: {said[-1]}") from None


@contextmanager
def signed_in(server: str, login: str) -> Iterator[str]:
    """An address that shows the server as somebody who has logged in: a page whose address holds the password cannot
    ask for its own data."""

    class Handler(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            request = urllib.request.Request(f"{server}{self.path}", body, method=self.command)
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
            request.add_header("Content-Type", self.headers.get("Content-Type", "application/json"))
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    code, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
            except HTTPError as refusal:
                code, kind, content = refusal.code, "text/plain", refusal.read()
            content = content.replace(b"<head>", GREETED, 1) if "html" in (kind or "") else content
            self.send_response(code)
            self.send_header("Content-Type", kind or "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = forward

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
