"""S3 in a process of its own (moto), made as strict as the real one in two respects.

moto checks ``If-None-Match`` and stores in two steps, so two threads of the server can both win:
here all requests that write are served one after the other. moto also stores an upload that was
cut off in the middle as if it were whole: here it is refused, as S3 does.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import threading
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.support import service

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
}
_SIGNED = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"  # moto looks no further


class Bucket:
    """A bucket seen from outside, by plain HTTP: what a test looks at and tampers with."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint = endpoint
        self.name = name

    @property
    def url(self) -> str:
        """The ``s3://`` URL of the bucket."""
        return f"s3://{self.name}"

    def keys(self, prefix: str = "") -> list[str]:
        """Return all keys under *prefix*, sorted by code point."""
        keys: list[str] = []
        token = ""
        while True:
            query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
            tree = ET.fromstring(self._ask("GET", "?" + urllib.parse.urlencode(query)))
            space = {"s": tree.tag.partition("}")[0].lstrip("{")}
            keys += [node.text or "" for node in tree.findall("s:Contents/s:Key", space)]
            token = tree.findtext("s:NextContinuationToken", "", space)
            if not token:
                return sorted(keys)

    def get(self, key: str) -> bytes:
        """Return the bytes of *key*."""
        return self._ask("GET", "/" + urllib.parse.quote(key))

    def put(self, key: str, data: bytes) -> None:
        """Write *key*, whatever was there."""
        self._ask("PUT", "/" + urllib.parse.quote(key), data)

    def delete(self, key: str) -> None:
        """Remove *key*."""
        self._ask("DELETE", "/" + urllib.parse.quote(key))

    def _ask(self, method: str, tail: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.endpoint}/{self.name}{tail}", data, method=method)
        request.add_header("Authorization", _SIGNED)
        request.add_header("Content-Type", "application/octet-stream")  # else it is taken for a form
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body


def create_bucket(endpoint: str) -> Bucket:
    """Create an empty bucket with a fresh name."""
    bucket = Bucket(endpoint, f"hub-{secrets.token_hex(6)}")
    bucket._ask("PUT", "", b"")
    return bucket


def share_descriptions() -> None:
    """Let all clients of this process share the descriptions of AWS: to parse them anew takes 0.15 s of CPU each."""
    from botocore.loaders import Loader

    known: dict[Any, Any] = {}
    begin = Loader.__init__

    def sharing(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self._cache = known

    Loader.__init__ = sharing


def delete_bucket(bucket: Bucket) -> None:
    """Remove *bucket* and all that is in it."""
    keys = bucket.keys()
    for start in range(0, len(keys), 1000):
        objects = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys[start : start + 1000])
        bucket._ask("POST", "?delete", f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode())
    with contextlib.suppress(urllib.error.HTTPError):  # uploads in parts may be left in it
        bucket._ask("DELETE", "")


class _Strict:
    """The two corrections, around moto's application."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._one = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._application(environ, start_response)
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read(int(length)) if length else b""
        if not length and environ.get("wsgi.input_terminated"):
            body = environ["wsgi.input"].read()
        if length and len(body) < int(length):
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [b"<Error><Code>IncompleteBody</Code><Message>The body was cut off.</Message></Error>"]
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        with self._one:
            return list(self._application(environ, start_response))


@contextlib.contextmanager
def _served(_folder: Path) -> Iterator[dict[str, Any]]:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _Strict(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {"endpoint": f"http://127.0.0.1:{server.server_address[1]}"}
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    service.supervise(_served)
