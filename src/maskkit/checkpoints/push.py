"""A model as a repository of the Hugging Face Hub: weights with their description, a model card, a sample."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

import maskkit
from maskkit import zoo
from maskkit.checkpoints import cache
from maskkit.checkpoints.checkpoint import Checkpoint, save_model
from maskkit.checkpoints.repositories import WEIGHTS, Repository, endpoint
from maskkit.errors import DataError, MaskkitError

SAMPLE = "sample.jpg"
"""The overlay in the repository that its card shows."""


def push_checkpoint(checkpoint: Checkpoint, address: str, licence: str, data: str, sample: Path, private: bool) -> str:
    """Write weights, card and sample to the repository ``hf://user/name`` in one commit; returns its page.

    Raises `MaskkitError` where downloads and uploads are switched off, where nobody is logged in, and for what the Hub
    refuses.
    """
    repository = Repository.of(address)
    if repository.revision is not None or repository.file is not None:
        raise DataError(f"{address}: push writes a whole repository; give hf://user/name")
    if cache.is_offline():
        raise MaskkitError(f"{address}: not pushed: --offline or HF_HUB_OFFLINE forbids it")
    api = HfApi(endpoint=endpoint(), library_name="maskkit", library_version=maskkit.__version__)
    info = {**checkpoint.info, "licence": licence}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / WEIGHTS
        save_model(weights, checkpoint.model, checkpoint.config, checkpoint.categories, info)
        card = model_card(checkpoint, repository, licence, data)
        files: list[tuple[str, Path | bytes]] = [(WEIGHTS, weights), ("README.md", card.encode()), (SAMPLE, sample)]
        operations = [CommitOperationAdd(name, content) for name, content in files]
        try:
            api.create_repo(repository.name, private=private, exist_ok=True)
            api.create_commit(repository.name, operations, commit_message=f"{checkpoint.config.preset} by maskkit")
        except (LocalTokenNotFoundError, HFValidationError) as error:
            raise MaskkitError(f"{address}: not pushed ({_line(error)}); log in: hf auth login") from None
        except HfHubHTTPError as error:
            raise MaskkitError(
                f"{address}: the Hub refuses it ({_line(error)}); check the name, and that your token may write: "
                "hf auth login"
            ) from None
        except Exception as error:  # of the client's own http library, whose name changes with its version
            if not isinstance(error, OSError | ValueError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            raise MaskkitError(
                f"{address}: {endpoint()} cannot be reached ({_line(error)}); nothing was pushed"
            ) from None
    return f"{endpoint()}/{repository.name}"


_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


def model_card(checkpoint: Checkpoint, repository: Repository, licence: str, data: str) -> str:
    """The card: how to use the model, classes, data, metrics with their command, preprocessing, licence."""
    config, names = checkpoint.config, checkpoint.categories.names
    method, task = zoo.method(config.preset), checkpoint.model.task
    size, input = config.input.size, config.input
    tags = json.dumps(["maskkit", f"{task}-segmentation", config.preset])
    return f"""---
license: {json.dumps(licence.lower())}
library_name: maskkit
pipeline_tag: image-segmentation
tags: {tags}
---

# {repository.name.partition("/")[2]}

{method.title} ({method.paper}), preset `{config.preset}`, for {task} segmentation with
[maskkit]({_SOURCE}) {maskkit.__version__}.

![Predictions of this model]({SAMPLE})

```python
import maskkit

model = maskkit.load("{repository}")
prediction = model.predict("photo.jpg")
prediction.save("overlay.png")
```

On the command line: `maskkit predict photo.jpg --model {repository}`.

## Classes

{", ".join(names)}

## Data

{data or "Not stated."}

## Metrics

{_metrics(checkpoint.info, repository)}

## Preprocessing

RGB images; {_RESIZE[input.resize]} {size[0]} x {size[1]} (height x width)\
{", with antialiasing" if input.antialias else ""}; minus {_numbers(input.mean)}, divided by {_numbers(input.std)}
(on 0 to 255). `{WEIGHTS}` holds this, the classes, and the threshold of scores.

## Licence

{licence}
"""


_SOURCE = "https://github.com/maskkit/maskkit"
_RESIZE = {
    "stretch": "stretched to",
    "pad": "fitted, with their aspect ratio, and padded to",
    "shorter": "resized to a shorter side and at most a longer side of",
}


def _metrics(info: Mapping[str, Any], repository: Repository) -> str:
    found = info.get("metrics")
    rows = [(str(k), v) for k, v in found.items() if isinstance(v, int | float)] if isinstance(found, Mapping) else []
    if not rows:
        return f"Not measured. `maskkit eval --model {repository} --data DATA` does it."
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in rows)
    return (
        f"| metric | value |\n| --- | --- |\n{table}\n\nOn the validation images of the training, with\n"
        f"`maskkit eval --model {repository} --data DATA`."
    )


def _numbers(three: tuple[float, float, float]) -> str:
    return " ".join(f"{number:g}" for number in three)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
