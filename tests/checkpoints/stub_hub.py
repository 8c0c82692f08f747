"""A Hugging Face Hub on loopback: repositories in memory, and the answers that huggingface_hub asks for."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.checkpoints.loopback import Silent, loopback

COMMIT = "a" * 40


@dataclass
class StubHub:
    """Repositories by name, each with the content of its files."""

    address: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their checksum."""
    served: dict[str, bytes] = field(default_factory=dict)
    """What is sent in place of a file, by its name: a damaged one."""
    requests: list[str] = field(default_factory=list)
    refuses: bool = False


@contextmanager
def hub() -> Iterator[StubHub]:
    class Handler(Silent):
        def answer(self, content: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            path = urlsplit(self.path).path
            stub.requests.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[0] == "api":
                name = "/".join(parts[2:4])
                about = {"id": name, "sha": COMMIT, "siblings": [], "private": True}
                if name in stub.repositories:
                    self.answer(json.dumps(about).encode())
                else:
                    self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
                return
            if len(parts) < 5 or parts[2] != "resolve":
                self.answer(b"")
                return
            name, file = "/".join(parts[:2]), "/".join(parts[4:])
            files = stub.repositories.get(name)
            if files is None:
                self.answer(b"", 404, X_Error_Code="RepoNotFound")
            elif file not in files:
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                content = files[file]
                if file.endswith((".safetensors", ".bin", ".onnx", ".data")):
                    etag = hashlib.sha256(content).hexdigest()
                else:
                    etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.answer(stub.served.get(file, content), ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

        do_GET = do_HEAD

        def do_PUT(self) -> None:
            stub.stored[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.requests.append(f"POST {self.path}")
            self.answer(b"{}" if stub.refuses else json.dumps(self.done(body)).encode(), 403 if stub.refuses else 200)

        def done(self, body: bytes) -> dict[str, Any]:
            path = urlsplit(self.path).path
            if path == "/api/repos/create":
                made = json.loads(body)
                name = f"{made['organization']}/{made['name']}"
                stub.repositories.setdefault(name, {})
                return {"url": f"{stub.address}/{name}"}
            if "/preupload/" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                large = {True: "lfs", False: "regular"}
                modes = [(name, large[name.endswith(".safetensors")]) for name in names]
                return {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes]}
            if path.endswith("/objects/batch"):
                wanted = json.loads(body)["objects"]
                place = {"upload": {"href": f"{stub.address}/upload/"}}
                actions = [{"upload": {"href": place["upload"]["href"] + one["oid"]}} for one in wanted]
                return {
                    "transfer": "basic",
                    "objects": [{**o, "actions": a} for o, a in zip(wanted, actions, strict=True)],
                }
            if "/commit/" in path:
                name = "/".join(path.split("/")[3:5])
                files = stub.repositories[name]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "lfsFile":
                        files[line["value"]["path"]] = stub.stored[line["value"]["oid"]]
                return {
                    "commitUrl": f"{stub.address}/{name}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "pullRequestUrl": None,
                }
            return {"errors": [], "warnings": []}

    with loopback(Handler) as address:
        stub = StubHub(address)
        yield stub
