"""The images in the body of a request. They stay in memory: nothing of a request becomes a file or a file name."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from maskkit.serve.limits import Limits, Refusal

FIELD = "image"
"""Name of the field of a form."""


class _InMemory(MultiPartParser):
    spool_max_size = 0  # no limit: the body has one


async def read_images(request: Request, limits: Limits, most: int) -> list[bytes]:
    """The encoded images of a form, at most ``most``, or the single image that is the body itself.

    Raises `Refusal` for a body that is too large or of another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not is_form and not (kind.startswith("image/") or kind in ("", "application/octet-stream")):
        message = f"send a form with the field {FIELD} (multipart/form-data), or an image as image/jpeg, image/png, ..."
        raise Refusal(415, "media_type", message)
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > limits.max_bytes:
        raise _too_large(limits)
    try:
        if not is_form:
            return [b"".join([chunk async for chunk in _bounded(request, limits)])]
        return await _form(request, limits, most)
    except ClientDisconnect:
        raise Refusal(400, "disconnected", "the client left before the end of its request") from None


async def _form(request: Request, limits: Limits, most: int) -> list[bytes]:
    parser = _InMemory(request.headers, _bounded(request, limits), max_files=most + 1, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, "bad_form", f"the form cannot be read: {error.message}") from None
    images = []
    try:
        for name, file in form.multi_items():
            if name != FIELD or isinstance(file, str):
                raise Refusal(422, "unknown_field", f"the form has another field than {FIELD}, a file")
            images.append(await file.read())
    finally:
        await form.close()
    if not images:
        raise Refusal(422, "no_image", f"the form has no field {FIELD}")
    if len(images) > most:
        raise Refusal(413, "too_many_images", f"more than {most} images in a request; send them in several")
    return images


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_bytes:
            raise _too_large(limits)
        yield chunk


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, "too_many_bytes", f"the service takes at most {limits.max_bytes} bytes in a request")
