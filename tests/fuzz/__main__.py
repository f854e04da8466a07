"""The long form: python -m tests.fuzz [index|block] [--seconds N] [--seed S] (needs atheris).

Coverage leads the way. What makes a target fail is printed, and kept in dist/fuzz; a file from
there is tried again with ``--replay FILE``.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path

CORPUS = Path("dist/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", metavar="TARGET", nargs="*", default=["index", "block"])
    parser.add_argument("--seconds", type=int, default=1800, help="for each target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--replay", metavar="FILE")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return fuzz(options)
    for name in options.names:
        print(f"{name}: --seconds {options.seconds} --seed {options.seed}", flush=True)
        words = [name, "--seconds", str(options.seconds), "--seed", str(options.seed), "--here"]
        words += ["--replay", options.replay] if options.replay else []
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], check=False)
        if done.returncode:
            return done.returncode
    return 0


def fuzz(options: argparse.Namespace) -> int:
    """One target, in a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["tar_like"]):
        from tests.fuzz.targets import seeds, targets
    (name,) = options.names
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (folder / f"seed-{number}").write_bytes(data)
    with targets() as known:
        if options.replay:
            known[name](Path(options.replay).read_bytes())
            return 0
        words = [
            f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-max_len=40000",
            "-len_control=20", "-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1",
            f"-artifact_prefix={CORPUS}{os.sep}", str(folder),
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *words], known[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
