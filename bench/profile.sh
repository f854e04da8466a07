#!/bin/sh
# Where does the time go? bench/profile.sh OUT COMMAND... , for example
#   bench/profile.sh /tmp/sync sync /usr/share /dev/shm/copy -q
# With py-spy on the PATH: all processes, as a flame graph in OUT.svg.
# Otherwise: the main process alone, with cProfile; the 40 functions that took longest.
set -eu
out=$1
shift
if command -v py-spy >/dev/null; then
    timeout 600 py-spy record --subprocesses --native --rate 200 -o "$out.svg" -- \
        python3 -m tar_like "$@"
else
    timeout 600 python3 -m cProfile -o "$out.prof" -m tar_like "$@"
    python3 -c 'import pstats, sys; pstats.Stats(sys.argv[1]).sort_stats("tottime").print_stats(40)' \
        "$out.prof"
fi
