"""Floor 6. Our figures beside a limit or a peer: ratios of two things interleaved in one process.

One file for each bench, found by its name; ``run(seconds)`` returns a ``BenchResult``. Benches are commands, never
timed tests: nothing here passes or fails.
"""
