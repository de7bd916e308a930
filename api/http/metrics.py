"""What the server counts about itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters of one application; routes stand by their template, so ids make no series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ragwright_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "ragwright_http_request_seconds",
            "Time to the end of the answer.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "ragwright_http_in_flight", "Requests being answered.", registry=self.registry
        )
        self.jobs = Gauge(
            "ragwright_jobs", "Jobs of all tenants.", ("state",), registry=self.registry
        )
        self.engine = Gauge(
            "ragwright_engine",
            "What runs in the engine and what waits for it.",
            ("figure",),
            registry=self.registry,
        )
