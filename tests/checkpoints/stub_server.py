"""A server on loopback that publishes files as zoos do, with the faults that networks have."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.checkpoints.loopback import Silent, loopback


@dataclass
class Stub:
    """Files by their path, and what is asked for."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths with their ``Range``."""
    breaks: list[int] = field(default_factory=list)
    """After how many bytes the next connections end."""
    ignores_ranges: bool = False

    def publish(self, name: str, content: bytes) -> str:
        """The address of a new file."""
        self.files[f"/{name}"] = content
        return f"{self.address}/{name}"


@contextmanager
def serving() -> Iterator[Stub]:
    class Handler(Silent):
        def do_GET(self) -> None:
            path, asked = self.path, self.headers.get("Range")
            stub.requests.append((path, asked))
            if path not in stub.files:
                self.send_error(404)
                return
            content = stub.files[path]
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            start = 0
            if asked and not stub.ignores_ranges and self.headers.get("If-Range", etag) == etag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            self.wfile.write(rest[: stub.breaks.pop(0)] if stub.breaks else rest)

    with loopback(Handler) as address:
        stub = Stub(address)
        yield stub


def everything_in(folder: Path) -> set[str]:
    """The names of all files below a folder, but for locks and the list of licences."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".lock") and name != "licences.json"}
