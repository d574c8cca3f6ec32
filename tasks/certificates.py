"""Deletion certificates: canonical JSON, signed with Ed25519, chained, and verifiable by anybody offline."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from infra.errors import KeyFileError
from registry.canonical import canonical_json
from registry.errors import CertificateError
from tasks.markdown import table_row

Certificate = dict[str, Any]

BEGINNING = "0" * 64
END = "-----END PUBLIC KEY-----"


def sign(content: Certificate, key: Ed25519PrivateKey, changes: Sequence[Mapping[str, str]] = ()) -> bytes:
    """The certificate's bytes: the content, the public key, how it followed earlier ones, and a signature over all."""
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    body = {**content, "public_key": public, **({"key_changes": [dict(c) for c in changes]} if changes else {})}
    signature = b64encode(key.sign(canonical_json(body))).decode()
    return canonical_json({**body, "signature": signature})


def digest(certificate: bytes) -> str:
    return sha256(certificate).hexdigest()


def verify(certificate: bytes, trusted_key: str | None = None) -> Certificate:
    """The content, or CertificateError. `trusted_key` (PEM, one or several in a row) is what the issuer published.

    Without it the certificate is checked against the key that it carries: that shows any changed byte, not who signed.
    """
    try:
        given = None if trusted_key is None else _public_keys(trusted_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"the trusted key is no public key in PEM: {error}") from None
    try:
        body = json.loads(certificate)
        signature = b64decode(body.pop("signature"), validate=True)
        trusted = given or _public_keys(body["public_key"])
        signed, whole = canonical_json(body), canonical_json({**body, "signature": b64encode(signature).decode()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, UnsupportedAlgorithm):
        raise CertificateError(
            "this is no certificate: it is not JSON with a signature and a public key; give the .json file that "
            "`deciduous erase` names as `certificate`, unchanged"
        ) from None
    if whole != certificate:
        raise CertificateError("the file is not the canonical bytes that were signed: something in it was changed")
    if not any(_signed(key, signature, signed) for key in trusted):
        raise CertificateError("the signature does not match: the content was changed or another key signed it")
    content: Certificate = body
    return content


def read_published(file: Path) -> str:
    """The public keys (PEM) that an issuer published in a file. Raises KeyFileError."""
    remedy = "give the public key that the issuer published (PEM)"
    try:
        text = file.read_text(encoding="utf-8")
        keys = _public_keys(text)
    except OSError as error:
        raise KeyFileError(f"cannot read the key {file}: {error.strerror}; {remedy}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{file} holds no public key: {error}; {remedy}") from None
    if not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise KeyFileError(f"{file} holds a key that is no Ed25519 key; {remedy}")
    return text


def _public_keys(pems: str) -> list[object]:
    keys: list[object] = [load_pem_public_key(pem.encode()) for pem in _pems(pems)]
    if not keys:
        raise ValueError("no public key")
    return keys


def fields(content: Certificate, *names: str) -> Certificate:
    """These fields. Raises CertificateError where what was signed lacks one: anybody can sign anything."""
    if missing := [name for name in names if name not in content]:
        raise CertificateError(f"this is signed and no certificate: it has no {', '.join(missing)}")
    return {name: content[name] for name in names}


def _pems(text: str) -> list[str]:
    return [f"{part}{END}\n" for part in text.split(END)[:-1]]


def _signed(key: object, signature: bytes, message: bytes) -> bool:
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateError("the public key is no Ed25519 key")
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _follows(content: Certificate, before: Certificate, trusted_key: str | None) -> bool:
    """Whether a certificate's key is the one before, or has its word through a row of changes, or both are trusted."""
    old, new = before["public_key"], content["public_key"]
    if old == new or {old.strip(), new.strip()} <= {pem.strip() for pem in _pems(trusted_key or "")}:
        return True
    reached = old
    try:
        for change in content.get("key_changes", []):
            if change["from"] == reached:
                signature, key = b64decode(change["signature"]), load_pem_public_key(reached.encode())
                reached = change["to"] if _signed(key, signature, change["to"].encode()) else reached
    except (ValueError, KeyError, AttributeError, TypeError, UnsupportedAlgorithm):
        return False
    return bool(reached == new)


def verify_chain(certificates: Iterable[bytes], trusted_key: str | None = None) -> list[Certificate]:
    """The contents in the order of the chain, from the first certificate of a home to its newest. Where the key changes
    the older one has signed the change; `trusted_key` is any of them, or several.

    Raises CertificateError where a signature fails, or one of them was taken out, put in or moved. Certificates cut off
    at the end show by comparison with the issuer's newest digest.
    """
    following: dict[str, tuple[str, Certificate]] = {}
    for each in certificates:
        content = verify(each)
        if not all(isinstance(text, str) for text in fields(content, "ticket", "previous_certificate").values()):
            raise CertificateError("this is signed and no certificate: its ticket and the one before are no words")
        if content["previous_certificate"] in following:
            raise CertificateError(f"two certificates follow the same one; the second is {content['ticket']}")
        following[content["previous_certificate"]] = digest(each), content
    chain: list[Certificate] = []
    head = BEGINNING
    while head in following:
        head, content = following.pop(head)
        if chain and not _follows(content, chain[-1], trusted_key):
            raise CertificateError(
                f"certificate {content['ticket']} is signed with another key than the one before, which did not sign "
                "the change: give every key that the issuer published with --key"
            )
        chain.append(content)
    if following:
        lost = ", ".join(sorted(content["ticket"] for _, content in following.values()))
        raise CertificateError(
            f"the chain breaks after {len(chain)} certificates: one before {lost} is missing or changed"
        )
    trusted = {pem.strip() for pem in _pems(trusted_key or "")}
    if chain and trusted_key is not None and trusted.isdisjoint(each["public_key"].strip() for each in chain):
        raise CertificateError("no certificate of the chain is signed with the given key: another key signed it")
    return chain


def render_markdown(content: Certificate) -> str:
    """The certificate for a reader; the JSON beside it is what was signed."""
    lines = [
        f"# Deletion certificate {content['ticket']}",
        "",
        f"**Guarantee {content['guarantee']}** for {content['records']} records of stream {content['stream']}.",
        "",
        content["scope"],
        "",
    ]
    facts = {
        "received": content["received_at"],
        "due": content["due_at"],
        "certified": content["certified_at"],
        "targets (keyed hashes)": len(content["targets"]),
        "shards": ", ".join(map(str, content["closure"]["shards"])) or "none",
        "sweep": f"{content['sweep']['hits']} hits for {content['sweep']['markers']} markers",
        "recipe digest": content["recipe_digest"],
        "certificate before this one": content["previous_certificate"],
    }
    lines += _table(("fact", "value"), facts.items())
    if content["left"]:
        lines += ["", "## What is left", "", *(f"* {each}" for each in content["left"])]
    lines += ["", "## Who did what, and when", ""]
    lines += _table(("what", "by", "at"), [(e["what"], e["by"], e["at"]) for e in content["history"]])
    lines += ["", "## What was rebuilt", ""]
    repairs = content["closure"]["repairs"]
    lines += _table(("adapter", "repair", "because"), [(r["adapter_id"], r["action"], r["reason"]) for r in repairs])
    lines += ["", "## Compared with artifacts made from scratch without the records", ""]
    compared = content["comparison"].items()
    rows = [(node, each["artifacts"], "equal" if each["equal"] else "DIFFERENT") for node, each in compared]
    lines += _table(("what", "artifacts", "bytes"), rows)
    lines += _monitors(content.get("monitors") or {})
    lines += ["", "## What was purged and swept", ""]
    counts = [(name, count) for name, count in content["purge"].items() if isinstance(count, int)]
    lines += _table(("store", "count"), [*counts, *content["sweep"]["by_store"].items()])
    lines += ["", "Check the signature: `deciduous verify CERTIFICATE.json --key ISSUER.pem`", ""]
    return "\n".join(lines)


def _monitors(found: Mapping[str, Any]) -> list[str]:
    """Membership tests: they can fail a ticket, and show nothing by themselves."""
    if not found:
        return []
    before = found.get("before", {})
    measured = [("before", *(before[kind] for kind in ("loss", "rmia")))] if before else []
    measured.append(("after", found["loss"], found["rmia"]))
    rows = [(when, *(f"{each['auc']:.3f} ± {each['half_width']:.3f}" for each in both)) for when, *both in measured]
    pooled = found["pooled"]
    counts = f"{found['rmia']['forgotten']} records against {found['rmia']['unseen']} strangers"
    return [
        "",
        "## Monitors: does the model tell the records from strangers (0.5 is chance)",
        "",
        *_table(("", "by loss", "by RMIA"), rows),
        "",
        f"{counts}; pooled over {pooled['forgotten']} records of this stream: {pooled['auc']:.3f} ± "
        f"{pooled['half_width']:.3f}. They can fail a ticket and never pass one alone.",
        *(f"* ALARM: {alarm}" for alarm in found["alarms"]),
    ]


def _table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    return [table_row(row) for row in (header, ["---"] * len(header), *rows)]
