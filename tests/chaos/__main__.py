"""The long forms: python -m tests.chaos [NAME ...] [--count N] [--seed S]

Without a name all of them run, each as often as docs/guarantees.md says. The seed is printed
first, so that a failure can be run again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from importlib import import_module

COUNTS = {
    "power": 300,
    "calls": 100_000,
    "errors": 100_000,
    "full": 50,
    "sequences": 10_000,
    "bits": 100_000,
    "network": 1000,
    "flips": 1_000_000,
    "slow": 1000,
    "kills": 1000,
    "patches": 300,
}
"""How often each long form tries; the name is that of its module."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(COUNTS))
    parser.add_argument("--count", type=int, help="how often each tries (default: its long form)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    unknown = set(options.names) - set(COUNTS)
    if unknown:
        parser.error(f"no such proof: {', '.join(sorted(unknown))}; there are {', '.join(COUNTS)}")
    for name in options.names or COUNTS:
        prove(name, options.count or COUNTS[name], options.seed)
    return 0


def prove(name: str, count: int, seed: int) -> None:
    """Run one proof and print its figures."""
    print(f"{name}: --count {count} --seed {seed}", flush=True)
    begun = time.monotonic()
    figures = import_module(f"tests.chaos.{name}").run(count, random.Random(f"{name} {seed}"))
    figures["seconds"] = round(time.monotonic() - begun, 1)
    print(f"{name}: holds: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
