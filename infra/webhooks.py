"""Receive MLflow's webhooks: only what carries a fresh and right signature is handed on."""

import base64
import hmac
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

FRESH_SECONDS = 300
LARGEST = 1 << 20
SIGNATURE, TIMESTAMP, DELIVERY = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether the body was signed with the secret within the last minutes, as MLflow signs (HMAC-SHA256, v1)."""
    headers = {name.lower(): value for name, value in headers.items()}  # proxies change the case
    stamp, delivery, signature = (headers.get(name, "") for name in (TIMESTAMP, DELIVERY, SIGNATURE))
    moment = _number(stamp)
    if moment is None or abs(now - moment) > FRESH_SECONDS or not (delivery + signature).isascii():
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{stamp}.".encode() + body, sha256).digest()
    return hmac.compare_digest(f"v1,{base64.b64encode(signed).decode()}", signature)


def _number(text: str) -> int | None:
    """None for what `int` would refuse as well: '²' is a digit to Python, and too many of them are an error."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _handed_on(body: bytes, receive: Callable[[dict[str, Any]], None]) -> int:
    try:
        receive(json.loads(body))
    except Exception as error:  # whatever it is: a connection that drops tells MLflow nothing
        logging.getLogger("deciduous").error("a webhook of MLflow was not taken in: %s", error)
        return 500
    return 204


@contextmanager
def listening(address: tuple[str, int], secret: str, receive: Callable[[dict[str, Any]], None]) -> Iterator[int]:
    """Answer webhooks in threads while the block runs; yields the port. A refused one gets 401 and leaves no trace, one
    that `receive` fails on gets 500, which has MLflow send it again, and is logged."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = _number(self.headers.get("Content-Length") or "0")
            body = self.rfile.read(min(length or 0, LARGEST))
            is_whole = length is not None and length <= LARGEST
            signed = is_whole and is_signed(secret, dict(self.headers.items()), body, time.time())
            self.send_response(_handed_on(body, receive) if signed else 401)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """What arrives is in Prefect's feed."""

    server = ThreadingHTTPServer(address, Handler)
    thread = Thread(target=server.serve_forever, name="webhooks", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
