"""A stand-in for tar-like that keeps its command line, to try the harness itself:

BENCH_TARLIKE="python3 bench/standin.py" python -m bench --quick
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync")
    sync.add_argument("src")
    sync.add_argument("dest")
    sync.add_argument("--compress")
    sync.add_argument("-q", action="store_true")
    index = commands.add_parser("index")
    index.add_argument("-b", dest="base")
    index.add_argument("-db")
    index.add_argument("-q", action="store_true")
    options = parser.parse_args()
    if options.command == "sync":
        return subprocess.call(["cp", "-a", f"{options.src}/.", options.dest])
    return make_index(options.base, options.db)


def make_index(base: str, db: str) -> int:
    with sqlite3.connect(db) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS tar (path BLOB PRIMARY KEY, hash TEXT)")
        for folder, _, files in os.walk(base):
            for name in files:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    with open(path, "rb") as file:
                        digest = hashlib.file_digest(file, "blake2b").hexdigest()
                    row = (os.fsencode(path), digest)
                    connection.execute("INSERT OR REPLACE INTO tar VALUES (?, ?)", row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
