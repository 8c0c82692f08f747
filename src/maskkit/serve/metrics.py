"""The metrics of a service, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("maskkit_requests", "Requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "maskkit_request_seconds", "From a request to its answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter("maskkit_images", "Images that were predicted.", registry=registry)
        self.found = Counter("maskkit_found", "Objects, segments or regions that were found.", registry=registry)
        self.batch = Histogram("maskkit_batch_images", "Images of a batch.", buckets=_IMAGES, registry=registry)
        self.restarts = Counter("maskkit_worker_restarts", "Ends of the model's process.", registry=registry)
        self._waiting = Gauge("maskkit_waiting_images", "Images that wait for the model.", registry=registry)
        self._ready = Gauge("maskkit_ready", "1 while the model is loaded.", registry=registry)

    def watch(self, waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Set the functions that give the number of waiting images, and whether the model is ready."""
        self._waiting.set_function(waiting)
        self._ready.set_function(lambda: float(ready()))

    def text(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)
