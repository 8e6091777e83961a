"""A server of the part of S3 that reading takes: list, head and get with ranges.

The client is Amazon's own, inside pyarrow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@contextmanager
def s3_server(objects: Mapping[str, bytes]) -> Iterator[str]:
    """Serve objects until the block ends.

    Args:
        objects: `bucket/key` -> content.

    Yields:
        The address, for AWS_ENDPOINT_URL.
    """

    handler = type("Handler", (_Handler,), {"objects": objects})
    server = ThreadingHTTPServer(("localhost", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    objects: Mapping[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        if "list-type" in query:
            bucket = unquote(asked.path).strip("/")
            self._send(200, _listing(self.objects, bucket, query), {})
        else:
            self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        content = self.objects.get(path)
        if content is None:
            buckets = {name.partition("/")[0] for name in self.objects}
            self._send(200 if path in buckets else 404, b"", {})
            return
        headers, code = {"Last-Modified": _DATE, "ETag": '"x"'}, 200
        wanted = self.headers.get("Range")
        whole = len(content)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content, code = content[int(first) : int(last or whole - 1) + 1], 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(content) - 1}/{whole}"
        self._send(code, content, headers, body=body)

    def _send(
        self, code: int, content: bytes, headers: Mapping[str, str], *, body: bool = True
    ) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _listing(objects: Mapping[str, bytes], bucket: str, query: Mapping[str, list[str]]) -> bytes:
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    keys = sorted(name.removeprefix(f"{bucket}/") for name in objects if name.startswith(bucket))
    keys = [key for key in keys if key.startswith(prefix)]
    found, folders = [], set()
    for key in keys:
        head, mark, _ = key.removeprefix(prefix).partition(delimiter or "\0")
        if mark:
            folders.add(prefix + head + mark)
        else:
            found.append(key)
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[f'{bucket}/{key}'])}</Size>"
        "<LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
        for key in found
    )
    common = "".join(
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        for folder in sorted(folders)
    )
    count = len(found) + len(folders)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}{common}"
        "</ListBucketResult>"
    ).encode()
