"""A server on this machine that speaks as much of the Hugging Face hub's protocol as is used."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = hashlib.sha1(b"a commit").hexdigest()
_LARGE = 1000
"""Bytes from which a file is stored as LFS, and served from elsewhere."""


class FakeHub:
    """``repositories``: folders by name. Faults, all off at first: ``cut``: bytes after which
    responses of some size break off, taken from the list one by one; ``pause``: seconds before each
    block; ``status``: what the API answers; ``spoil``: names that are served damaged;
    ``ignore_range``: whether files always come from their beginning. ``log``: (name, first byte,
    bytes sent) of each
    file, but for headers of safetensors."""

    def __init__(self, repositories):
        self.repositories, self.cut, self.pause = repositories, [], 0.0
        self.status, self.spoil, self.ignore_range = None, set(), False
        self.log, self.url = [], ""
        self.wait = threading.Event()

    def files(self, name):
        folder = self.repositories[name]
        return {
            p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()
        }

    def sent(self, name):
        return sum(count for served, _, count in self.log if served == name)

    def info(self, name):
        siblings = []
        for path, file in self.files(name).items():
            data = file.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"rfilename": path, "size": len(data), "blobId": blob}
            if len(data) >= _LARGE:
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        card = {"license": "mit"}
        tags = ["license:mit"]
        return dict(id=name, modelId=name, sha=COMMIT, siblings=siblings, cardData=card, tags=tags)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self.api(match[1])
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self.resolve(*match.groups())
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self.content(*match.groups(), {})
        else:
            self.refuse(404)

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status):
        self.answer(status, {"X-Error-Code": "RepoNotFound"} if status == 404 else {})

    def api(self, name):
        if self.hub.status:
            return self.refuse(self.hub.status)
        if name not in self.hub.repositories:
            return self.refuse(404)
        return self.answer(200, body=json.dumps(self.hub.info(name)).encode())

    def resolve(self, name, path):
        file = self.hub.files(name).get(path)
        if file is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        sha, size = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha}"', "Accept-Ranges": "bytes"}
        if size < _LARGE:
            return self.content(name, path, headers)
        headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{sha}"'}
        return self.answer(302, headers | {"Location": f"{self.hub.url}/cdn/{name}/{path}"})

    def content(self, name, path, headers):
        data = self.hub.files(name)[path].read_bytes()
        if path in self.hub.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, stop, status = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not self.hub.ignore_range:
            start, status = int(asked[1]), 206
            stop = min(stop, int(asked[2]) + 1) if asked[2] else stop
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(stop - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        header = asked and asked[2]  # of safetensors
        count = stop - start
        if self.hub.cut and not header and count >= 8 * _LARGE:
            count = min(count, self.hub.cut.pop(0))
        for position in range(start, start + count, 4096):
            self.hub.wait.wait(self.hub.pause)
            self.wfile.write(data[position : min(position + 4096, start + count)])
        if not header:
            self.hub.log.append((path, start, count))
        if count < stop - start:
            self.close_connection = True
            self.connection.close()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that are killed hang up."""


@contextmanager
def serving(repositories):
    """A :class:`FakeHub` that answers at its ``url``."""
    hub = FakeHub(repositories)
    server = _Quiet(("127.0.0.1", 0), _Handler)
    server.hub = hub
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
