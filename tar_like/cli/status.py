"""tar-like status"""

from __future__ import annotations

import argparse
import time
from typing import Any

from tar_like import config
from tar_like.cli.output import Output, size

DESCRIPTION = """\
Ask a receiver which transfers are under way and how far they are; or, with --redis, the uploading
commands and workers that meet there. --watch looks again every second, until nothing is under way
any more; with --json it prints one object a look.
"""
EVERY = 1.0


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.common import add_receiver_arguments

    parser.add_argument(
        "url", metavar="URL", nargs="?", default=settings.url,
        help="the receiver (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--redis", metavar="URL", help="the Redis that hands out the work")
    parser.add_argument("--watch", action="store_true", help="look again every second")
    add_receiver_arguments(parser)


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.errors import OK

    look = _Redis(options) if options.redis else _Receiver(options)
    while True:
        found = look()
        for line in found.pop("lines"):
            output.result(line)
        under_way = found.pop("under_way")
        if not options.watch or not under_way:
            return output.finish(found, OK)
        output.interim(found)
        time.sleep(EVERY)


class _Receiver:
    """Looks at a receiver; rates come from what changed since the last look."""

    def __init__(self, options: argparse.Namespace) -> None:
        from tar_like.cli.common import trust
        from tar_like.upload.client import Client

        self._client = Client(options.url, trust=trust(options, config.load()))
        self._before: dict[str, tuple[float, int]] = {}

    def __call__(self) -> dict[str, Any]:
        rows = []
        for one in self._client.transfers():
            row = one.to_dict()
            for what in ("received", "durable"):
                row[f"{what}_bytes"] = one.bytes * getattr(one, what) // max(1, one.blocks)
            row["missing"] = one.blocks - one.received
            row["missing_bytes"] = one.bytes - row["received_bytes"]
            row["rate"] = self._rate(one.id, row["received_bytes"])
            row["eta"] = _eta(row["missing_bytes"], row["rate"])
            rows.append(row)
        lines = [_line(row) for row in rows] or ["No transfers are under way."]
        return {"transfers": rows, "lines": lines, "under_way": bool(rows)}

    def _rate(self, transfer: str, received: int) -> float:
        now = time.monotonic()
        before, had = self._before.get(transfer, (now, received))
        self._before[transfer] = (now, received)
        return round((received - had) / (now - before), 1) if now > before else 0.0


class _Redis:
    """Looks at what uploading commands and workers say of themselves."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._url = options.redis

    def __call__(self) -> dict[str, Any]:
        from dataclasses import asdict

        from workers.progress import abandoned, look, under_way

        view = look(self._url)
        rows = []
        for one in view.transfers:
            row = asdict(one)
            row["followed"] = under_way(one)
            row["abandoned"] = abandoned(one)
            row["missing"] = one.blocks - one.received
            row["missing_bytes"] = one.bytes - one.received_bytes
            row["eta"] = _eta(row["missing_bytes"], one.rate)
            rows.append(row)
        workers = [asdict(one) for one in view.workers]
        lines = [_line(row) for row in rows] or ["No transfers are known here."]
        lines.append(f"{len(workers)} workers:" if workers else "No workers are alive.")
        lines += [_worker_line(row) for row in workers]
        lines += [f"  {text}" for text in view.refused[:10]]
        return {
            "transfers": rows,
            "workers": workers,
            "refused": view.refused,
            "lines": lines,
            "under_way": any(row["followed"] for row in rows),
        }


def _eta(missing: int, rate: float) -> int | None:
    """Seconds until all has arrived; None while nobody knows."""
    if not missing:
        return 0
    return round(missing / rate) if rate > 0 else None


def _line(row: dict[str, Any]) -> str:
    text = (
        f"{row['id'][:16]}  {row['state']}  {row['received']} of {row['blocks']} blocks "
        f"({size(row['received_bytes'])} of {size(row['bytes'])}) received, "
        f"{row['durable']} durable, {row['missing']} missing"
    )
    if row["rate"]:
        text += f"; {size(round(row['rate']))}/s, {row['eta']} s to go"
    if row.get("limit"):
        text += f"; limit {size(row['limit'])}/s"
    if row.get("abandoned"):
        text += "; no uploading command is at it: run the same one again"
    if row.get("failure"):
        text += f"; last failure: {row['failure']}"
    return text


def _worker_line(row: dict[str, Any]) -> str:
    text = f"  {row['host']} {row['pid']}  {row['phase']}"
    if row["job"]:
        text += (
            f"  {row['transfer'][:16]} blocks {row['first']} to {row['stop'] - 1}, "
            f"{row['sent']} sent; {size(round(row['rate']))}/s"
        )
    return text + (f"; last failure: {row['failure']}" if row["failure"] else "")
