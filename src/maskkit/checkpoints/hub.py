"""Published weights as maskkit checkpoints: those of presets, downloaded or from a file, and those in repositories of
the Hugging Face Hub."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import cache
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.convert import convert
from maskkit.checkpoints.download import Published, Unreachable, download, locked
from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.checkpoints.header import is_checkpoint, read_header
from maskkit.checkpoints.listing import is_safetensors
from maskkit.checkpoints.repositories import (
    WEIGHTS,
    Repository,
    fetch_file,
    licence_of,
    optional_file,
    require_licence,
)
from maskkit.checkpoints.transformers_config import recognise
from maskkit.config import InputConfig, ModelConfig, RunConfig, to_dict
from maskkit.errors import DataError, MaskkitError
from maskkit.files import digest
from maskkit.prediction import Categories
from maskkit.zoo.card import Weights

CONVERSION = 1
"""Changes when a key map is corrected, so that what was converted before is converted anew."""

HUB = "hub"
"""The name, in place of a file, of the weights that `fetch` downloads."""


def import_state(
    state: dict[str, Tensor],
    preset: str,
    out: Path,
    source: str,
    model: ModelConfig | None = None,
    input: InputConfig | None = None,
    classes: Categories | None = None,
    facts: Mapping[str, str] | None = None,
) -> Categories:
    """Convert an official ``state`` and write it to ``out``. Returns the classes.

    ``model``, ``input`` and ``classes`` are the preset's where they are not given; ``facts`` about the weights are
    stored with them. Raises `DataError` (`convert`), and where there are not as many names as classes.
    """
    chosen = zoo.preset(preset)
    config = RunConfig(preset, model or chosen.model, input or chosen.input, chosen.augment, chosen.train)
    names = chosen.classes if classes is None else classes
    if len(names) != config.model.num_classes:
        raise DataError(f"there are {len(names)} names for {config.model.num_classes} classes; give a name for each")
    converted = convert(state, preset, config.model)
    network = zoo.model_class(preset)(config.model)
    network.load_state_dict(converted)
    save_model(out, network, config, names, {"imported": source, **(facts or {})})
    return names


def can_fetch(preset: str) -> bool:
    """Whether `fetch` can download weights of the preset."""
    weights = zoo.preset(preset).weights
    return weights is not None and weights.fetched


def published_name(preset: str) -> str:
    """What the weights that `fetch` downloads are called."""
    weights = zoo.preset(preset).weights
    if weights is None:
        return preset
    return f"torchvision: {weights.torchvision}" if weights.torchvision else f"{weights.source}: {weights.url}"


def address(weights: Weights) -> Published:
    """The file of published weights. torchvision knows the addresses of its own."""
    if not weights.torchvision:
        return Published(weights.url, weights.sha256, weights.md5, weights.bytes)
    url = torchvision.models.get_weight(weights.torchvision).url
    digits = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return Published(url, digits.group(1) if digits else "")


def size_in_bytes(weights: Weights) -> int | None:
    """The size of the download, rounded where torchvision gives it; None where nobody does."""
    if not weights.torchvision:
        return weights.bytes
    megabytes = torchvision.models.get_weight(weights.torchvision).meta.get("_file_size")
    return round(megabytes * 1e6) if isinstance(megabytes, int | float) else None


def converted_file(preset: str) -> Path:
    """Where `fetch` puts the checkpoint of ``preset``: its name changes with the file and with what it becomes."""
    chosen = zoo.preset(preset)
    weights = chosen.weights
    assert weights is not None
    parts = [CONVERSION, weights.url, weights.torchvision, weights.sha256, to_dict(chosen.model), chosen.classes.names]
    digest = hashlib.sha256(json.dumps([*parts, to_dict(chosen.input)]).encode()).hexdigest()
    return cache.home() / "converted" / f"{preset}-{digest[:12]}.safetensors"


def download_folder(url: str) -> Path:
    """Where the download of an address is until it has been converted: zoos give different files the same name."""
    return cache.home() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:12]


def fetch(preset: str) -> Path:
    """A checkpoint with the weights that are published for ``preset``: downloaded, verified and converted once.

    It stays in the folder of `cache.home`. Raises `DataError` when there are no such weights, and without a network,
    with the file to fetch by hand; `MaskkitError` for a licence that does not allow every use and was not accepted.
    """
    weights = zoo.preset(preset).weights
    if weights is None:
        raise DataError(f"there are no published weights of {preset!r} that could be loaded; train it")
    by_hand = f"maskkit import FILE --model {preset} --out {preset}.safetensors"
    if not weights.fetched:
        raise DataError(f"weights of {preset!r} cannot be fetched: download them from {weights}, then: {by_hand}")
    cache.require_licence(weights.licence, weights.source, weights.non_commercial)
    converted = converted_file(preset)
    if converted.is_file():
        return converted
    published = address(weights)
    if cache.is_offline():
        raise DataError(
            f"weights of {preset!r} are not in {converted.parent}, and downloads are switched off (--offline, "
            f"HF_HUB_OFFLINE); on a machine with a network download {published.url}, then: {by_hand}"
        )
    file = download_folder(published.url) / published.name
    with locked(file.parent.with_suffix(".lock")):
        if converted.is_file():  # by another process in the meantime
            return converted
        try:
            download(published, file)
        except Unreachable as error:
            elsewhere = f"or download it on another machine, then: {by_hand}"
            raise DataError(f"weights of {preset!r}: {error}; {elsewhere}") from None
        facts = {"licence": weights.licence, "source": weights.source, "sha256": digest(file)}
        try:
            import_state(read_checkpoint(file), preset, converted, published.url, facts=facts)
        except DataError as error:
            raise DataError(f"weights of {preset!r} from {published.url}: {error}") from None
        shutil.rmtree(file.parent, ignore_errors=True)
    return converted


_MASK2FORMER = ("facebook/mask2former-", "CC-BY-NC-4.0")
"""Whose cards say ``other``; Mask2Former's MODEL_ZOO.md has the licence."""


def fetch_repository(address: str) -> Path:
    """A checkpoint of ours from a repository: as it is there, or converted from weights of transformers.

    Raises `DataError` without a network, for a repository or file that is not there, for another checksum than the Hub
    gives, for pickles, and for weights of a network that nobody recognises; `MaskkitError` for a licence that does not
    allow every use and was not accepted.
    """
    repository = Repository.of(address)
    path = fetch_file(repository, repository.file or WEIGHTS)
    if not is_safetensors(path):
        raise DataError(
            f"{address}: {path.name} is no safetensors file, and pickles of the Hub are not loaded; if it holds "
            f"weights of a preset: maskkit import {repository}/{path.name} --model PRESET"
        )
    if is_checkpoint(path):
        licence = read_header(path)["info"].get("licence")
        require_licence(repository, licence if isinstance(licence, str) else None)
        return path
    return _converted(repository, path)


def fetch_weights(address: str) -> Path:
    """The weight file of a repository, for `maskkit import`: the file that is named, or that of transformers."""
    repository = Repository.of(address)
    if repository.file is not None:
        return fetch_file(repository, repository.file)
    return optional_file(repository, WEIGHTS) or fetch_file(repository, "pytorch_model.bin")


def _converted(repository: Repository, path: Path) -> Path:
    """A checkpoint made of weights of transformers."""
    config = _json(repository, "config.json")
    try:
        network = recognise(config, _json(repository, "preprocessor_config.json"), repository.name)
    except MaskkitError as error:
        raise DataError(
            f"{repository}: {error}; name its preset: maskkit import {repository} --model PRESET --out FILE.safetensors"
        ) from None
    start, official = _MASK2FORMER
    licence = official if repository.name.startswith(start) else licence_of(repository)
    require_licence(repository, licence)
    key = hashlib.sha256(json.dumps([path.resolve().name, config], sort_keys=True).encode()).hexdigest()[:12]
    out = cache.home() / "converted" / f"{repository.name.replace('/', '--')}-{key}.safetensors"
    if not out.is_file():
        source, facts = str(repository), {"licence": str(licence)}
        state = read_checkpoint(path)
        import_state(state, network.preset, out, source, network.model, network.input, network.classes, facts)
    return out


def _json(repository: Repository, name: str) -> Mapping[str, Any]:
    """A JSON file of a repository; nothing where there is none, or it is damaged."""
    path = optional_file(repository, name)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
