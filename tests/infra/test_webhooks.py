"""A webhook is taken as MLflow signs it; anything else is refused."""

import json
import time
import urllib.request
from http.client import HTTPConnection
from urllib.error import HTTPError

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from infra.webhooks import DELIVERY, FRESH_SECONDS, SIGNATURE, TIMESTAMP, is_signed, listening

SECRET = "a secret of sixteen"


def headers(body: str, stamp: int, secret: str = SECRET) -> dict[str, str]:
    signature = _generate_hmac_signature(secret, "d-1", str(stamp), body)
    return {SIGNATURE: signature, TIMESTAMP: str(stamp), DELIVERY: "d-1"}


def test_only_mlflows_own_fresh_signature_of_this_body_passes():
    body = json.dumps({"entity": "model_version_alias"})
    assert is_signed(SECRET, headers(body, 1000), body.encode(), 1000)
    assert not is_signed(SECRET, headers(body, 1000, "another secret of 16"), body.encode(), 1000)
    assert not is_signed(SECRET, headers(body, 1000), body.encode() + b" ", 1000)
    assert not is_signed(SECRET, headers(body, 1000), body.encode(), 1001 + FRESH_SECONDS)
    assert not is_signed(SECRET, {}, body.encode(), 1000)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (TIMESTAMP, "²"),
        (TIMESTAMP, "1" * 5000),
        (TIMESTAMP, "-1000"),
        (SIGNATURE, "v1,é"),
        (DELIVERY, "é"),
        ("Content-Length", "²"),
        ("Content-Length", "-1"),
    ],
)
def test_headers_that_no_sender_writes_are_refused_like_any_other(capsys, header, value):
    body = "{}"
    sent = {**headers(body, int(time.time())), "Content-Length": str(len(body)), header: value}
    with listening(("127.0.0.1", 0), SECRET, lambda _: None) as port:
        asked = HTTPConnection("127.0.0.1", port, timeout=5)
        asked.putrequest("POST", "/")
        for name, each in sent.items():
            asked.putheader(name, each.encode("latin-1"))
        asked.endheaders(body.encode())
        answer = asked.getresponse()
        asked.close()
    assert answer.status == 401
    assert capsys.readouterr().err == ""


def test_what_is_not_signed_is_refused_and_not_handed_on():
    received = []
    with listening(("127.0.0.1", 0), SECRET, received.append) as port:

        def post(body: str, secret: str) -> None:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/", body.encode())
            for name, value in headers(body, int(time.time()), secret).items():
                request.add_header(name, value)
            urllib.request.urlopen(request, timeout=5).close()

        post('{"action": "created"}', SECRET)
        with pytest.raises(HTTPError, match="401"):
            post('{"action": "forged"}', "another secret of 16")
    assert received == [{"action": "created"}]


def test_what_cannot_be_taken_in_is_answered_with_500_and_said(caplog, capsys):
    """The connection was dropped, and a traceback written."""

    def fail(_: object) -> None:
        raise OSError("the catalog is away")

    body = "{}"
    with listening(("127.0.0.1", 0), SECRET, fail) as port:
        asked = HTTPConnection("127.0.0.1", port, timeout=5)
        asked.request("POST", "/", body, headers(body, int(time.time())))
        answer = asked.getresponse()
        asked.close()
    assert answer.status == 500
    assert "not taken in: the catalog is away" in caplog.text
    assert capsys.readouterr().err == ""
