"""The limits of a service, and how it refuses requests."""

from dataclasses import dataclass

from maskkit.ranges import Batch, Count, Positive, Weight

MAX_TILES = 256
"""Largest number of tiles of an image: with small tiles a large image would take minutes."""
BUSY_SECONDS = 1
"""Seconds that a client is told to wait when the queue is full."""


@dataclass(frozen=True)
class Limits:
    """Bounds of memory and time. At most ``queue`` bodies of ``max_bytes`` are in memory."""

    queue: Count = 64
    """Images that are being read, waiting or being predicted; a request beyond them is refused immediately."""
    batch: Batch = 1
    """Largest number of images, from any requests, that share a forward pass. A GPU is faster with several; the last
    digits of scores and the borders of masks then depend on their number, as with maskkit predict --batch."""
    wait: Weight = 5.0
    """Milliseconds that an image waits for others to share its forward pass."""
    timeout: Positive = 30.0
    """Seconds for a request, from its first byte to its answer."""
    max_bytes: Count = 32_000_000
    """Bytes of the body of a request."""
    max_pixels: Count = 1 << 25
    """Pixels of an image, by its header, before it is decoded."""
    max_images: Count = 16
    """Images of a request to /v1/predict-batch, at most as many as the queue takes."""

    @property
    def images(self) -> int:
        """Largest number of images of a request."""
        return min(self.max_images, self.queue)


class Refusal(Exception):
    """A request that is not answered with a prediction: its status, a short code, and what the client can do."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def to_json(self) -> dict[str, dict[str, str]]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


def busy() -> Refusal:
    """The queue is full."""
    return Refusal(503, "busy", "the queue of the service is full; try again", BUSY_SECONDS)


def not_ready() -> Refusal:
    """The process of the model is loading, or has ended."""
    return Refusal(503, "not_ready", "the model is being loaded; try again", 5 * BUSY_SECONDS)


def too_slow(seconds: float) -> Refusal:
    """The time of a request has passed."""
    message = f"no answer within {seconds:g} seconds; try again, or send a smaller image"
    return Refusal(503, "timeout", message, 5 * BUSY_SECONDS)
