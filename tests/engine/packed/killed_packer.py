"""Run as a script: forks warm children that pack a checkpoint and kills each with SIGKILL after a delay.

For each line on stdin (checkpoint, folder, seconds) it prints true where the child was killed before it was done.
"""

import json
import os
import signal
import sys
import time

from moelab.engine.packed.write import pack_model

if __name__ == "__main__":
    for line in sys.stdin:
        model, folder, seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                pack_model(model, folder)
                os._exit(0)
            finally:
                os._exit(3)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.WIFSIGNALED(status)), flush=True)
