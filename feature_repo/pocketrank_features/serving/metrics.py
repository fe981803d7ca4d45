"""What Prometheus is told: counts, times and bytes by route and status; of no user and no address.

Workers write to files of one folder, and whichever is asked sums up all of them. That folder has to be named before
prometheus_client is first imported, and before Feast is, which else names one of its own.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MutexValue, ValueClass

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pocketrank_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pocketrank_request_seconds", "From a request's head to its answer's end.", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._bytes = Counter("pocketrank_sent_bytes", "Bytes of answers' bodies.", ["route"], registry=self._registry)

    def add(self, route: str, status: int, seconds: float, sent: int) -> None:
        """Count one request.

        Args:
            route: as the app has it, such as /v1/pack; never what was asked for.
            status: of the answer.
            seconds: that it took.
            sent: bytes of its body.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes.labels(route).inc(sent)

    def text(self) -> bytes:
        """All of them, of all workers, in Prometheus' format."""
        if ValueClass is MutexValue:  # no folder was named
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)
