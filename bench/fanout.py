"""python -m bench.fanout: the fan-out over hosts, and what dying costs.

    hosts     1, 2, 4, 8 sending hosts at 100 Mbit/s each (network namespaces; needs root)
    overhead  what RQ costs a range: jobs that find nothing to do, one after the other
    death     from kill -9 of a worker, or the loss of its link, until another has its range
    redis     from the return of a killed Redis until a worker has a range again

Not guaranteed: that the hosts' own processors are what one would have: all share this machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench.__main__ import DOCUMENT
from bench.hosts import Hosts
from bench.machine import machine_line
from bench.measure import say
from bench.report import write_between
from tar_like.index import Index
from tar_like.proxy.receipts import Receipts
from tar_like.upload.client import Client
from tests.e2e.harness import Job, Proxy, index, run, wait_for
from tests.fanout.harness import Redis, Worker, at_work, ended_well, met, records, workers
from workers.cache import plan_digest
from workers.jobs import FUNCTION, Order, OrderQueue
from workers.ranges import SECONDS as WORTH

MBIT = 100
SECONDS = 16  # of sending, for each host
BLOCK = 1 << 20
ROUNDS = 2
JOBS = 300
TRIES = 2  # of which the faster counts: others may use this machine's processors
AWAY = 20  # seconds that Redis is gone: longer than two ranges
COMMAND = (sys.executable, "-m", "tar_like")


def main() -> int:
    """Run what is asked for; with --write into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("hosts", "overhead", "death", "redis"))
    parser.add_argument("--hosts", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and leave nothing running
    parts: dict[str, Callable[[Path], list[str]]] = {
        "hosts": lambda work: hosts(work, options.hosts),
        "overhead": overhead,
        "death": death,
        "redis": redis_killed,
    }
    lines = [machine_line(), ""]
    for name, part in parts.items():
        if options.only in (None, name):
            folder = Path(tempfile.mkdtemp(prefix="tar-like-bench-", dir="/dev/shm"))
            try:
                lines += [*part(folder), ""]
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_between(DOCUMENT, "bench-fanout", text)
    return 0


def fill(root: Path, size: int) -> None:
    """Files of 16 MiB that do not compress, no two alike: what is there already is not sent."""
    root.mkdir(parents=True)
    most = 16 << 20
    for number in range(-(-size // most)):
        (root / f"{number:04}").write_bytes(os.urandom(min(most, size - number * most)))


def hosts(work: Path, counts: list[int]) -> list[str]:
    """Throughput by the number of hosts."""
    if not Hosts.possible():
        return ["Hosts not measured: network namespaces need root."]
    before = os.getloadavg()[0]
    tries: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(TRIES):
        for count in counts:
            folder = work / str(count)
            fill(folder / "src", count * SECONDS * MBIT * 1_000_000 // 8)
            tries[count].append(_throughput(folder, count))
            shutil.rmtree(folder)
            sending, whole = (rate * 8 / 1e6 for rate in tries[count][-1])
            say(f"{count} hosts: {sending:.0f} Mbit/s sending, {whole:.0f} with all else")
    rates = {count: max(found) for count, found in tries.items()}
    first = counts[0]
    one = [rate / first for rate in rates[first]]
    rows = [
        f"| {count} | {sending * 8 / 1e6:.0f} | {sending / (count * one[0]):.3f} "
        f"| {whole * 8 / 1e6:.0f} | {whole / (count * one[1]):.3f} |"
        for count, (sending, whole) in rates.items()
    ]
    return [
        "| hosts | sending, Mbit/s | of hosts × one | whole command, Mbit/s | of hosts × one |",
        "|--:|--:|--:|--:|--:|",
        *rows,
        "",
        f"All in one run: links of {MBIT} Mbit/s, blocks of 1 MiB that do not compress, "
        f"{SECONDS} s of sending at a host's rate, source and destination on tmpfs; the faster of "
        f"{TRIES} tries. Hosts, receiver and Redis share this machine's cores, with a load of "
        f"{before:.1f} before. All tries, sending: {_all(tries)}.",
    ]


def _all(tries: dict[int, list[tuple[float, float]]]) -> str:
    return "; ".join(
        f"{count}: " + ", ".join(f"{sending * 8 / 1e6:.0f}" for sending, _ in found)
        for count, found in tries.items()
    )


def _throughput(folder: Path, count: int) -> tuple[float, float]:
    """Bytes a second: of sending alone, and of the whole command, negotiation to commit."""
    size = sum(path.stat().st_size for path in (folder / "src").iterdir())
    transfer = str(index(folder / "src", folder / "db")["id"])
    with Hosts(count, mbit=MBIT) as net, ExitStack() as stack:
        redis = stack.enter_context(Redis(folder, host=net.address, prefix=net.hub()))
        options = ("-b", folder / "dst", "--host", net.address, "--no-auth")
        proxy = _start(stack, net.hub(), "proxy", *options, 8000)
        wait_for("the proxy", lambda: b"listening" in proxy.stderr(), unless=proxy.ended)
        with net.inside():
            wait_for("redis-server", redis.answers)  # the connection made here stays on the hub
        for number in range(count):
            options = ("--redis", redis.url, "--cache", folder / f"cache{number}", "-p", 1)
            _start(stack, net.host(number), "worker", *options)
        wait_for("the workers", lambda: len(records(redis)) == count)
        upload = _start(
            stack, net.hub(), "upload", "-b", folder / "src", "-db", folder / "db",
            "-u", f"http://{net.address}:8000/tar", "-s", BLOCK, "--compress", "none",
            "--redis", redis.url, "--json",
        )  # fmt: skip
        sending = _sending(redis, folder / "dst/.tar_like/transfers" / transfer, upload)
        whole = float(ended_well(upload)["seconds"])
    shutil.rmtree(folder / "dst")
    assert size / sending * 8 < count * MBIT * 1e6, "that is more than went over the links"
    return size / sending, size / whole


def _sending(redis: Redis, transfer: Path, upload: Job) -> float:
    """Seconds from the first sign of a worker's sending until the receipts of all blocks."""

    def blocks() -> int:
        text = redis.client.get(f"tar-like:transfer:{transfer.name}")
        return int(json.loads(text)["blocks"]) if text else 0

    wait_for("a range", lambda: any(one["job"] for one in records(redis)), unless=upload.ended)
    begun = time.monotonic()
    total = wait_for("the plan", blocks, unless=upload.ended)
    receipts = Receipts(str(transfer / "receipts"))

    def all_there() -> bool:
        time.sleep(0.05)
        try:
            receipts.refresh()
        except FileNotFoundError:  # it is committed
            return True
        return receipts.received == total

    wait_for("all blocks", all_there, seconds=300, unless=upload.ended)
    return time.monotonic() - begun


def _start(stack: ExitStack, prefix: tuple[str, ...], *words: object) -> Job:
    return stack.enter_context(Job(*words, prefix=prefix))


def overhead(work: Path) -> list[str]:
    """Seconds that a range costs beside its blocks: a transfer of many ranges of one block."""
    fill(work / "src", 64 << 20)
    index(work / "src", work / "db")
    (work / "redis").mkdir()
    with (
        Redis(work / "redis") as redis,
        Proxy(work / "dst") as proxy,
        workers(redis, work, 1),
    ):
        options = ("-b", work / "src", "-db", work / "db", "-u", proxy.url, "-s", 64 << 10)
        run("upload", *options, "-l", 0)  # block 0 only, so that the transfer stays open
        cost = _no_op(redis, _order(work, proxy), JOBS)
    return [
        f"A range costs {cost * 1000:.1f} ms beside its blocks (RQ, Redis, and asking the receiver "
        f"what is missing): {cost / WORTH:.2%} of a range's usual {WORTH:.0f} s."
    ]


def _order(work: Path, proxy: Proxy) -> dict[str, Any]:
    """To send block 0, which has arrived."""
    with Index(str(work / "db")) as opened:
        transfer = opened.id
    client = Client(proxy.url)
    client.fetch(transfer, "plan", str(work / "plan"))
    client.close()
    return Order(
        transfer=transfer, plan=plan_digest(str(work / "plan")), urls=[proxy.url],
        source=str(work / "src"), first=0, stop=1, block_size=64 << 10, compress="none",
    ).to_json()  # fmt: skip


def _no_op(redis: Redis, order: dict[str, Any], count: int) -> float:
    """Seconds for each of many ranges that find nothing to do."""
    queue = OrderQueue("tar-like", connection=redis.client, serializer="json")
    jobs = [queue.enqueue_call(FUNCTION, kwargs=order) for _ in range(count)]
    wait_for("the first to end", _ended(jobs[0]))
    begun = time.monotonic()
    wait_for("the last to end", _ended(jobs[-1]))
    return (time.monotonic() - begun) / (count - 1)


def _ended(job: Any) -> Callable[[], bool]:
    return lambda: job.get_status() in ("finished", "failed")


def _upload(redis: Redis, proxy: Proxy, work: Path, *args: object) -> Job:
    return Job(
        "upload", "-b", work / "src", "-db", work / "db", "-u", proxy.url, "-s", 64 << 10,
        "--redis", redis.url, "--compress", "none", "--json", *args,
    )  # fmt: skip


def death(work: Path) -> list[str]:
    """Seconds from a worker's death until its range is another's."""
    found: dict[str, list[float]] = {"kill -9": [], "cut off": []}
    fill(work / "src", 40_000_000)
    transfer = index(work / "src", work / "db")["id"]
    for number in range(ROUNDS):
        for how, times in found.items():
            folder = work / f"{number}{how[0]}"
            folder.mkdir()
            times.append(_death(work, folder, transfer, how))
            say(f"{how}: {times[-1]:.1f} s")
    return [
        f"From the death of a worker, at a random moment, until another sends its range: "
        f"{_spread(times)} ({how})."
        for how, times in found.items()
    ]


def _death(work: Path, folder: Path, transfer: str, how: str) -> float:
    with (
        Redis(folder) as redis,
        Proxy(folder / "dst") as proxy,
        workers(redis, work, 2) as crew,
        _upload(redis, proxy, work, "--limit", "1M") as job,
    ):
        met(job, proxy, transfer, 0.3)  # ranges have their usual length by then
        time.sleep(random.uniform(0, WORTH))
        victim: Worker = crew[0]
        held = wait_for("a range", lambda: at_work(redis, victim), unless=job.ended)
        assert held
        begun = time.monotonic()
        victim.kill() if how == "kill -9" else victim.freeze()

        def taken() -> bool:
            return any(
                one["job"] != held["job"] and held["first"] <= one["first"] < held["stop"]
                for one in records(redis)
                if one["pid"] != held["pid"]
            )

        wait_for("another to have it", taken, unless=job.ended)
        seconds = time.monotonic() - begun
        job.kill()
        victim.kill()
        return seconds


def redis_killed(work: Path) -> list[str]:
    """Seconds from Redis' return until a worker has a new range."""
    fill(work / "src", 40_000_000)
    transfer = index(work / "src", work / "db")["id"]
    times = []
    for number in range(ROUNDS):
        folder = work / str(number)
        folder.mkdir()
        with (
            Redis(folder) as redis,
            Proxy(folder / "dst") as proxy,
            workers(redis, work, 2),
            _upload(redis, proxy, work, "--limit", "1M") as job,
        ):
            met(job, proxy, transfer, 0.1)
            redis.kill()
            time.sleep(AWAY)  # nobody has anything to send any more
            had = _received(proxy, transfer)
            redis.start()
            begun = time.monotonic()

            def again(proxy: Proxy = proxy, had: int = had) -> bool:
                return _received(proxy, transfer) > had

            wait_for("blocks to flow", again, unless=job.ended)
            times.append(time.monotonic() - begun)
            say(f"Redis killed: {times[-1]:.1f} s")
            job.kill()
    return [
        f"From the return of a killed, emptied Redis, away for {AWAY} s, until blocks flow: "
        f"{_spread(times)}."
    ]


def _received(proxy: Proxy, transfer: str) -> int:
    state = proxy.blocks(transfer)
    return state.received if state else 0


def _spread(times: list[float]) -> str:
    return f"{median(times):.1f} s (worst of {len(times)}: {max(times):.1f} s)"


if __name__ == "__main__":
    sys.exit(main())
