"""The routes under /v1, and /metrics."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

import maskkit
from maskkit.serve.answers import Answer, Ask, MaskFormat
from maskkit.serve.body import FIELD, read_images
from maskkit.serve.limits import Refusal, not_ready, too_slow
from maskkit.serve.worker import Model

if TYPE_CHECKING:
    from maskkit.serve.app import Service

_bearer = HTTPBearer(auto_error=False, description="The token of the service.")


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return request.app.state.service


def authorised(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
    """Refuse a request without the token of the service."""
    token = service_of(request).token or ""
    if not (given and hmac.compare_digest(given.credentials.encode(), token.encode())):
        raise Refusal(401, "unauthorised", "send the token of the service: Authorization: Bearer TOKEN")


router = APIRouter()

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_MASK = {
    "description": "mask=rle: COCO's run lengths; polygon: a list of polygons; png: a PNG in base64.",
    "oneOf": [{"type": "object"}, {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}],
}
_ROW = {
    "type": "object",
    "required": ["image_id", "category_id"],
    "properties": {
        "image_id": {"type": "integer"},
        "category_id": {"type": "integer"},
        "bbox": {"type": "array", "items": {"type": "number"}, "description": "x y width height, in pixels"},
        "score": {"type": "number"},
        "mask_score": {"type": "number"},
        "segmentation": _MASK,
    },
}
_IMAGE = {
    "type": "object",
    "required": ["image", "score", "names", "predictions"],
    "properties": {
        "image": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "width": {"type": "integer"}, "height": {"type": "integer"}},
        },
        "score": {"type": "number", "description": "The threshold that was used."},
        "names": {"type": "array", "items": {"type": "string"}, "description": "The class of each prediction."},
        "predictions": {"type": "array", "items": _ROW, "description": "Rows of COCO results."},
    },
}
_BATCH = {
    "type": "object",
    "required": ["results"],
    "properties": {"results": {"type": "array", "items": {"anyOf": [_IMAGE, _ERROR]}}},
}
_BINARY = {"type": "string", "format": "binary"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: schema}}}


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _content(_ERROR)}
    for status, text in {
        400: "The form cannot be read.",
        401: "The token is missing or wrong.",
        406: "Neither JSON nor PNG is accepted.",
        408: "The body did not arrive in time.",
        413: "Too many bytes, pixels or images.",
        415: "The body is neither a form nor an image.",
        422: "A parameter is wrong, or the image cannot be read.",
        503: "Busy, not ready, or too slow; Retry-After says when to try again.",
    }.items()
}

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Counters and their values.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    401: _REFUSALS[401],
}

Score = Annotated[float | None, Query(ge=0, le=1, description="Above this score; default: the model's own threshold.")]
Classes = Annotated[list[str] | None, Query(description="Names of classes; repeat it for several. Default: all.")]
Tile = Annotated[int | None, Query(ge=32, le=65_536, description="Cut large images into tiles of this size in pixels.")]
Mask = Annotated[MaskFormat, Query(description="How masks are written.")]
ImageNumber = Annotated[int, Query(ge=0, le=2**53 - 1, description="The image_id of the rows.")]


@router.post(
    "/v1/predict",
    summary="The objects of an image.",
    response_class=Response,
    responses={
        200: {"description": "Rows, or an overlay.", "content": _content(_IMAGE) | {"image/png": {"schema": _BINARY}}},
        **_REFUSALS,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form(_BINARY), "application/octet-stream": {"schema": _BINARY}},
        }
    },
)
async def predict(
    request: Request,
    score: Score = None,
    classes: Classes = None,
    tile: Tile = None,
    mask: Mask = "rle",
    image_id: ImageNumber = 1,
) -> Response:
    """The image is the body, or the field ``image`` of a form. ``Accept: image/png`` asks for the overlay."""
    overlay = _wants_png(request.headers.get("accept", ""))
    (answer,) = await _answers(request, 1, Ask(b"", image_id, score, tuple(classes or ()), tile, mask, overlay))
    if answer.status != 200:
        return _error(answer)
    return Response(answer.body, media_type="image/png" if overlay else "application/json")


@router.post(
    "/v1/predict-batch",
    summary="The objects of several images.",
    response_class=Response,
    responses={200: {"description": "One result per image.", "content": _content(_BATCH)}, **_REFUSALS},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form({"type": "array", "items": _BINARY, "minItems": 1})},
        }
    },
)
async def predict_batch(
    request: Request, score: Score = None, classes: Classes = None, tile: Tile = None, mask: Mask = "rle"
) -> Response:
    """The images are the fields ``image`` of a form; their ids are their positions, from 1.

    An image that is empty, broken or too large has an error in place of its rows.
    """
    most = service_of(request).limits.images
    answers = await _answers(request, most, Ask(b"", 1, score, tuple(classes or ()), tile, mask))
    lines = b",\n".join(answer.body for answer in answers)
    return Response(b'{"results": [\n' + lines + b"\n]}", media_type="application/json")


@router.get(
    "/v1/model",
    summary="The model and the limits of the service.",
    responses={401: _REFUSALS[401], 503: _REFUSALS[503]},
)
def model(request: Request) -> JSONResponse:
    """Task, classes, input, threshold and licence; the version of maskkit; the limits; names of sample images."""
    service = service_of(request)
    return JSONResponse(
        {
            "name": service.name,
            **_model_of(service)._asdict(),
            "version": maskkit.__version__,
            "limits": {
                "bytes": service.limits.max_bytes,
                "pixels": service.limits.max_pixels,
                "images": service.limits.images,
                "seconds": service.limits.timeout,
            },
            "samples": list(service.samples),
        }
    )


@router.get("/metrics", summary="Metrics in Prometheus' text format.", response_class=Response, responses=_TEXT)
def metrics(request: Request) -> Response:
    """Requests, times, batches, the queue, the process."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get(
    "/v1/samples/{name}",
    summary="A sample image.",
    response_class=Response,
    responses={
        200: {"description": "A JPEG.", "content": {"image/jpeg": {"schema": _BINARY}}},
        401: _REFUSALS[401],
        404: {"description": "There is no such sample.", "content": _content(_ERROR)},
        422: _REFUSALS[422],
    },
)
def sample(request: Request, name: str) -> Response:
    """One of the images of the package."""
    content = service_of(request).samples.get(name)
    if content is None:
        raise Refusal(404, "not_found", "there is no such sample")
    return Response(content, media_type="image/jpeg")


async def _answers(request: Request, most: int, ask: Ask) -> list[Answer]:
    """The answers for the images of a request, at most ``most``; ``ask`` holds the parameters. Raises `Refusal`."""
    service = service_of(request)
    _check_classes(ask.classes, _model_of(service))
    deadline = asyncio.get_running_loop().time() + service.limits.timeout
    with service.queue.slots() as slots:
        try:
            async with asyncio.timeout_at(deadline):
                images = await read_images(request, service.limits, most)
        except TimeoutError:
            raise Refusal(408, "slow_request", "the body did not arrive in time") from None
        slots.take(len(images) - 1)
        first = ask.image_id
        asks = [ask._replace(image=image, image_id=number) for number, image in enumerate(images, first)]
        del images
        try:
            async with asyncio.timeout_at(deadline):
                answers = await service.queue.asked(asks)
        except TimeoutError:
            raise too_slow(service.limits.timeout) from None
    service.metrics.images.inc(sum(answer.status == 200 for answer in answers))
    service.metrics.found.inc(sum(answer.found for answer in answers))
    request.scope["maskkit.found"] = (len(answers), sum(answer.found for answer in answers))
    return answers


def _model_of(service: Service) -> Model:
    found = service.queue.model
    if found is None:
        raise not_ready()
    return found


def _check_classes(classes: tuple[str, ...], model: Model) -> None:
    known = {category["name"] for category in model.classes}
    for name in classes:
        if name not in known:
            raise Refusal(422, "unknown_class", f"the model has no class {name[:80]!r}; GET /v1/model lists them")
    if classes and model.task == "semantic":
        raise Refusal(422, "no_choice", "classes chooses objects and segments; this model gives every pixel a class")


def _wants_png(accept: str) -> bool:
    """Whether the Accept header asks for the overlay: it names PNG and not JSON. Raises `Refusal` for other types."""
    kinds = {part.partition(";")[0].strip().lower() for part in accept.split(",")} - {""}
    if not kinds or kinds & {"application/json", "application/*"}:
        return False
    if kinds & {"image/png", "image/*"}:
        return True
    if "*/*" in kinds:
        return False
    raise Refusal(406, "not_acceptable", "the answer is application/json or image/png")


def _error(answer: Answer) -> Response:
    headers = {"Retry-After": "5"} if answer.status == 503 else None
    return Response(answer.body, answer.status, headers, media_type="application/json")


def refused(request: Request, refusal: Exception) -> Response:
    """The answer for a `Refusal`."""
    found = cast(Refusal, refusal)
    headers = {} if found.retry_after is None else {"Retry-After": str(found.retry_after)}
    if found.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(found.to_json(), found.status, headers)
