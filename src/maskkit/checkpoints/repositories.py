"""Files in repositories of the Hugging Face Hub, by ``hf://user/name``; huggingface_hub fetches them. No torch.

``hf://user/name@REVISION/FILE`` names a branch, tag or commit, and a file; both may be left out. Files are kept in
``huggingface/`` of `cache.home`, and compared with the checksum that the Hub gives for them whenever they are used.
`maskkit.checkpoints.hub` makes checkpoints of them.
"""

import hashlib
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from maskkit.checkpoints import cache
from maskkit.checkpoints.external_data import external_files
from maskkit.errors import DataError, FileError, explain
from maskkit.files import digest

SCHEME = "hf://"
WEIGHTS = "model.safetensors"
"""The file of weights in a repository of ours, and in those of transformers."""

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")
_RESTRICTED = re.compile(r"\bnc\b|non-?commercial|academic|research|^other$", re.IGNORECASE)


class Missing(DataError):
    """A file that a repository does not have."""


@dataclass(frozen=True)
class Repository:
    """A repository, or a file in it."""

    name: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def of(cls, address: str) -> "Repository":
        """What ``hf://...`` means. Raises `DataError` for anything else."""
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise DataError(f"{address}: not an address of a repository; it is hf://user/name, or hf://user/name/FILE")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}"


def endpoint() -> str:
    """The address of the Hub; ``HF_ENDPOINT`` moves it."""
    return (os.environ.get("HF_ENDPOINT", "").strip() or constants.ENDPOINT).rstrip("/")


def fetch_exported(address: str) -> Path:
    """A file of a repository that `maskkit export` wrote, with those that hold its weights: the ``.bin`` beside an
    ``.xml``, and what an ``.onnx`` names. All are of one commit. See `fetch_file`.

    The licence is that of the repository's card. Raises `MaskkitError` for one that does not allow every use and was
    not accepted, `DataError` for an ``.onnx`` whose weights are outside of its folder.
    """
    repository = Repository.of(address)
    name = PurePosixPath(repository.file or "")
    require_licence(repository, licence_of(repository))
    path = fetch_file(repository, str(name))
    commit = path.parents[len(name.parts) - 1].name  # snapshots/COMMIT/NAME
    beside = [name.with_suffix(".bin").name] if name.suffix == ".xml" else external_files(path)
    for other in beside:
        fetch_file(replace(repository, revision=commit), str(name.parent / other))
    return path


def fetch_file(repository: Repository, name: str) -> Path:
    """A file of a repository in the folder of downloads, complete and verified.

    Raises `Missing` where the repository has no such file, `DataError` for whatever else is wrong.
    """
    where = f"{repository}/{name}"
    folder = cache.home() / "huggingface"
    offline = cache.is_offline() or not _reachable()
    try:
        found = hf_hub_download(
            repository.name,
            name,
            revision=repository.revision,
            cache_dir=folder,
            endpoint=endpoint(),
            local_files_only=offline,
        )
    except HFValidationError as error:
        raise DataError(f"{where}: not an address of a repository ({error})") from None
    except LocalEntryNotFoundError:
        known = try_to_load_from_cache(repository.name, name, folder, repository.revision)
        if known is not None and not isinstance(known, str):  # the Hub said so the last time
            raise Missing(f"{where}: the repository has no such file") from None
        raise DataError(
            f"{where}: not in {folder}, and {endpoint()} cannot be reached or --offline forbids it; with a network "
            f"download {endpoint()}/{repository.name}/resolve/{repository.revision or 'main'}/{name} and use its path"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise DataError(
            f"{where}: there is no such repository or revision, or it is private; check the name, or log in: "
            "hf auth login"
        ) from None
    except EntryNotFoundError:
        raise Missing(f"{where}: the repository has no such file") from None
    except HfHubHTTPError as error:
        raise DataError(f"{where}: the Hub refuses it ({str(error).splitlines()[0]}); try again later") from None
    except OSError as error:
        raise FileError(explain(error, folder)) from error
    except Exception as error:  # of the client's own http library, whose name changes with its version
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise DataError(f"{where}: the download broke off ({error}); try again") from None
    return _verified(Path(found), where)


def _verified(path: Path, where: str) -> Path:
    """The file, whose content is what its name in the cache says: a sha256, or git's checksum for small files."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        right = digest(blob) == blob.name
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        right = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
    else:
        right = True  # a system without links: the client has checked the size
    if not right:
        for part in (path, blob):
            part.unlink(missing_ok=True)
        raise DataError(f"{where}: the download has another checksum than the Hub gives; it was deleted: try again")
    return path


def _reachable() -> bool:
    """Whether the Hub answers; its client would try for a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def optional_file(repository: Repository, name: str) -> Path | None:
    """The file, or None where the repository has none."""
    try:
        return fetch_file(repository, name)
    except Missing:
        return None


def licence_of(repository: Repository) -> str | None:
    """What the card of a repository says, or None."""
    path = optional_file(repository, "README.md")
    if path is None:
        return None
    head = re.match(r"\s*---\s*\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w. -]{1,60}?)[\"']?\s*$", head.group(1), re.MULTILINE) if head else None
    return found.group(1) if found is not None else None


def require_licence(repository: Repository, licence: str | None) -> None:
    """Show a repository's licence once; see `cache.require_licence`. None: it states none."""
    name = licence or "not stated"
    cache.require_licence(name, str(repository), bool(_RESTRICTED.search(name)))
