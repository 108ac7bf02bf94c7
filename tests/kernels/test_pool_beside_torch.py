"""The pool beside a thread team of torch: same bits, no deadlock, torch's threads as found, workers where they were."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from moelab.domain.trace import Phase
from moelab.engine import load
from moelab.engine.sampling import Sampling
from moelab.kernels import ExpertLayout, RoutedExperts, isa_table
from moelab.store import shipped
from tests.kernels.random_experts import random_arena, random_step

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity masks on this platform"),
    pytest.mark.skipif(
        not any(row.supported and row.isa != "numba" for row in isa_table()), reason="native kernels are not built"
    ),
]
ROUNDS, DECODE_STEPS, TEAM = 8, 8, 2


class TorchTeam:
    """A thread that keeps a team of torch busy until it is told to end: products, and sums that a team cuts up."""

    def __init__(self) -> None:
        self.num_rounds = 0
        self.num_wrong = 0
        self.threads_seen: set[int] = set()
        self.error: BaseException | None = None
        self._end = threading.Event()
        self.started = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            torch.set_num_threads(TEAM)
            generator = torch.Generator().manual_seed(0)
            a, b = torch.randint(-8, 9, (2, 256, 256), generator=generator).float()
            expected = (a.double() @ b.double()).float()  # whole numbers: exact in any order
            while not self._end.is_set():
                self.num_wrong += not torch.equal(a @ b, expected)
                self.num_wrong += int((a.repeat(8, 1) + 1).sum()) != 8 * int((a + 1).sum())
                self.threads_seen.add(torch.get_num_threads())
                self.num_rounds += 1
                self.started.set()
        except BaseException as error:
            self.error = error
            self.started.set()

    def __enter__(self) -> TorchTeam:
        self._thread.start()
        assert self.started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "torch's team hangs"


def num_threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


def cores_of_workers(pool) -> dict[int, set[int]]:
    """What the system says, asked by each worker about itself."""
    cores: dict[int, set[int]] = {}
    pool.run(lambda worker, n: cores.__setitem__(worker, os.sched_getaffinity(0)))
    return cores


def decode(engine) -> list[torch.Tensor]:
    """Logits of some decode steps of two sequences by the native program, all of it on the pool."""
    rows = torch.randint(2, 4096, (2, DECODE_STEPS), generator=torch.Generator().manual_seed(1))
    cache = engine.new_cache(len(rows))
    sequences = [engine.new_sequence(row.tolist(), 1, Sampling(), ()) for row in rows]
    engine.model.program(len(rows)).pool = engine.pool  # steps as small as these would run on the caller alone
    return [engine.step(rows[:, q : q + 1], cache, 0, sequences, Phase.DECODE, "last") for q in range(DECODE_STEPS)]


# A deadlock sits in a native call, where no signal reaches Python: the thread method ends the run and shows the stacks.
@pytest.mark.timeout(60, method="thread")
def test_experts_and_decode_beside_a_team_of_torch():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    layout = ExpertLayout(512, 256, "int4_g32")  # 16 pairs of it are far beyond what the caller computes alone
    arena = random_arena(layout, 8, seed=1)
    x, ids, gates = random_step(np.random.default_rng(2), 4, 4, 8, 512)
    threads_before = torch.get_num_threads()
    with load(shipped("nano/model"), num_workers=2, dense_weights="int8", dense_dtype="float32") as engine:
        experts = RoutedExperts(layout, arena.addresses, pool=engine.pool, owner=arena)
        assert experts.workers(ids.size) is engine.pool
        alone = experts.forward(x, ids, gates)
        logits_alone = decode(engine)
        cores_alone = cores_of_workers(engine.pool)
        process_threads = num_threads_of_process()
        with TorchTeam() as team:
            assert num_threads_of_process() >= process_threads + TEAM, "torch made no team: the test shows nothing"
            rounds_before = team.num_rounds
            for _ in range(ROUNDS):
                np.testing.assert_array_equal(experts.forward(x, ids, gates), alone)
                for got, expected in zip(decode(engine), logits_alone, strict=True):
                    assert torch.equal(got, expected)
                assert torch.get_num_threads() == threads_before
                assert cores_of_workers(engine.pool) == cores_alone
            assert team.num_rounds > rounds_before, "torch stood still: nothing was run beside it"
        assert team.error is None
        assert team.num_wrong == 0
        assert team.threads_seen == {TEAM}
        assert engine.pool.pinned
        assert len(cores_alone[1]) == 1
        assert cores_alone[0] == os.sched_getaffinity(0)


def test_engine_leaves_the_number_of_torch_threads_as_found():
    """Inside a step one, afterwards as many as before, where an observer fails too."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with load(shipped("nano/model")) as engine:
            inside = []
            engine.observers.append(lambda *arguments: inside.append(torch.get_num_threads()))
            engine.generate([1, 2, 3], 3, stop=())
            assert torch.get_num_threads() == 4

            def fail(*arguments):
                raise KeyboardInterrupt

            engine.observers.append(fail)
            with pytest.raises(KeyboardInterrupt):
                engine.generate([1, 2, 3], 3, stop=())
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
