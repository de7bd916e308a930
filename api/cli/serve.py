"""`ragwright serve`: the HTTP API, with workers and, if asked for, a Redis of its own."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--embedded", is_flag=True, help="Start a private Redis for this machine.")
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True)
def serve(host: str, port: int, embedded: bool, workers: int) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C, and let requests end then.

    RAGWRIGHT_REDIS_URL names the Redis, or --embedded starts one that keeps everything on this
    machine. The first start on loopback makes an API key and says where it lies.
    """
    import logging
    import sys

    from api.cli.queues import settings_of
    from api.http.serving import serve as run

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("ragwright").setLevel(logging.INFO)
    run(settings_of(), host=host, port=port, embedded=embedded, workers=workers)
