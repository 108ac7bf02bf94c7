"""A recorder that is killed: run as a script, it forks warm children and kills each with SIGKILL.

For each line on stdin (folder, seed, number of reports after which it dies, delay in seconds) it prints
one line of JSON: the tokens that the child had reported as appended, and those it was about to have.
"""

import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

from moelab.store import TraceWriter
from tests.store.recorded_rows import Rows, append, header

ROWS = Rows(header(), seed=7)
MESSAGE = struct.Struct("<QQ")  # committed, intended


def record_for_ever(folder, seed, pipe):
    draw = random.Random(seed)
    while True:
        with TraceWriter(folder, ROWS.header, draw.choice([64, 200, 500])) as writer:
            for _ in range(draw.randint(1, 40)):
                committed = writer.num_tokens
                size = draw.choice([1, 1, draw.randint(1, 48), draw.randint(1, 48), 120])
                os.write(pipe, MESSAGE.pack(committed, committed + size))
                append(writer, ROWS.take(committed, committed + size))
                if draw.random() < 0.2:
                    writer.commit()
                os.write(pipe, MESSAGE.pack(writer.num_tokens, writer.num_tokens))


def kill_one(folder, seed, num_messages, delay):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            record_for_ever(Path(folder), seed, write_end)
        except BaseException as error:
            os.write(2, f"recorder failed: {error!r}\n".encode())
        os._exit(3)
    os.close(write_end)
    data = b""
    while len(data) < num_messages * MESSAGE.size and (piece := os.read(read_end, MESSAGE.size)):
        data += piece
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        data += pipe.read()
    committed, intended = MESSAGE.unpack(data[-MESSAGE.size :]) if data else (0, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"killed": killed, "reported": bool(data), "committed": committed, "intended": intended}


def warm_up():
    """pyarrow imports more (pandas too) when it first writes: once here, not in every child."""
    with tempfile.TemporaryDirectory() as folder, TraceWriter(folder, ROWS.header) as writer:
        append(writer, ROWS.take(0, 1))


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(json.dumps(kill_one(*json.loads(line))), flush=True)
