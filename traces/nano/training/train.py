"""Training run of nano: two single-thread data-parallel workers on one machine, resumable.

Knows: the order of the data, the schedules (all by tokens), shared memory, checkpoints, the log.
Does not know: how good the result is (evaluate.py).

The workers share ONE copy of the parameters and of the optimizer state. A step is: both compute
gradients | each sums its half of the gradients | each updates its half of the parameters. So
nothing is sent or updated twice. Barriers have no timeout: SIGSTOP of the process group pauses the
run for any length of time, SIGCONT goes on. SIGTERM writes a checkpoint and ends.

    python train.py --folder CACHE --total-tokens 24e6      # resumes by itself if checkpoints exist
"""

import argparse
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

# Large buffers must come from the heap: fresh mmap pages cost a page fault per 4 kB in every step.
for key, value in {
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}.items():
    if key not in os.environ:
        os.environ[key] = value
        os.environ["NANO_REEXEC"] = "1"
if __name__ == "__main__" and os.environ.pop("NANO_REEXEC", None):
    import sys

    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import torch
import torch.multiprocessing as mp
from model import Nano, NanoConfig, resolve_dtype
from optimizer import FlatLayout, Optimizer

NUM_WORKERS, ROWS_PER_WORKER, LENGTH = 2, 8, 256
STEP_TOKENS = NUM_WORKERS * ROWS_PER_WORKER * LENGTH
LONG_FRACTION, LONG_LENGTH = 0.90, 512  # from this fraction of the tokens on: rows of 512
WARMUP_STEPS, DECAY_FRACTION, CLIP = 100, 0.60, 1.0
EMBED_STD = 0.5  # 0.02 left the experts next to nothing to do: docs/log.md
LEARNING_RATE = {"expert_and_head": 3e-3, "embed": 1e-2, "router": 1e-3, "norm": 3e-3, "muon": 3e-3}
BIAS_STEPS = ((0.20, 0.01), (0.70, 0.003), (0.95, 0.0006), (1.01, 0.0))  # (until fraction, step)
LOAD_EMA = 0.9


class Batches:
    """Rows of training text, balanced over domains: row r of the run is of domain r mod D.

    Each domain is read in windows without replacement; every epoch has its own offset and order,
    both a function of (seed, domain, epoch, length), so a resumed run sees the same rows.
    """

    def __init__(self, folder: Path, seed: int):
        files = sorted((folder / "tokens").glob("*.train.npz"))
        self.domains = [f.name.removesuffix(".train.npz") for f in files]
        self.streams = [np.load(f)["tokens"] for f in files]
        self.seed, self.orders = seed, {}

    def row(self, index: int, length: int) -> np.ndarray:
        domain, n = index % len(self.streams), index // len(self.streams)
        stream = self.streams[domain]
        num_windows = (len(stream) - 1) // length - 1
        epoch, position = divmod(n, num_windows)
        key = (domain, epoch, length)
        if key not in self.orders:
            rng = np.random.default_rng([self.seed, *key])
            self.orders[key] = (rng.permutation(num_windows), int(rng.integers(length)))
        order, offset = self.orders[key]
        begin = offset + int(order[position]) * length
        return stream[begin : begin + length + 1].astype(np.int64)

    def batch(self, step: int, rank: int, length: int) -> torch.Tensor:
        num_rows = ROWS_PER_WORKER * LENGTH // length
        first = (step * NUM_WORKERS + rank) * num_rows
        return torch.from_numpy(np.stack([self.row(first + i, length) for i in range(num_rows)]))


def schedule(step: int, total_steps: int, warm_from: int = 0) -> tuple[float, float, int]:
    """-> (factor of the learning rates, step of the router bias, row length); warm-up begins at ``warm_from``."""
    fraction = step / total_steps
    factor = min(1.0, (step + 1 - warm_from) / WARMUP_STEPS, max(0.0, (1 - fraction) / (1 - DECAY_FRACTION)))
    bias_step = next(value for until, value in BIAS_STEPS if fraction < until)
    return factor, bias_step, LONG_LENGTH if fraction >= LONG_FRACTION else LENGTH


def save(path: Path, **content) -> None:
    """Atomic: a reader sees the old set of checkpoints or the new one. The newest two are kept."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)
    for old in sorted(path.parent.glob("step_*.pt"))[:-2]:
        old.unlink()


def load_model(path: Path) -> tuple[Nano, dict]:
    """The network of a checkpoint (float32, no gradients) and the checkpoint's content."""
    content = torch.load(path, weights_only=True, mmap=True)
    model = Nano(NanoConfig(**{**content["config"], "compute_dtype": "float32"}))
    flat = content["flat"].clone()
    FlatLayout(model).bind(model, flat, None)
    for moe, bias in zip(model.moe_layers, content["bias"]):
        moe.gate.e_score_correction_bias = bias.clone()
    return model.eval(), content


def read_exported(folder: Path, model: Nano, bias: torch.Tensor) -> int:
    """Weights of an exported folder into ``model`` (bound already) and ``bias``; returns its number of steps.

    Loses the optimizer state and what int4 rounding takes; both come back in a few hundred steps.
    """
    from export import dequantised_state
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        steps = int(file.metadata()["trained_steps"])
        state = dequantised_state({name: file.get_tensor(name) for name in file.keys()}, model.c)
    with torch.no_grad():
        model.load_state_dict(state)
        for row, moe in zip(bias, model.moe_layers):
            row.copy_(moe.gate.e_score_correction_bias)
    return steps


def newest(folder: Path) -> Path | None:
    return max((folder / "checkpoints").glob("step_*.pt"), default=None)


def work(rank: int, arguments, shared: dict, barrier) -> None:
    torch.set_num_threads(1)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config, folder = shared["config"], arguments.folder
    model = Nano(config)
    layout = FlatLayout(model)
    grads, flat, state = shared["grads"], shared["flat"], shared["state"]
    layout.bind(model, flat, grads[rank])
    for moe, bias in zip(model.moe_layers, shared["bias"]):
        moe.gate.e_score_correction_bias = bias
    accumulated = slice(layout.group_ranges["embed"][0], layout.num_parameters)  # the rest is overwritten
    optimizer = Optimizer(layout, flat, state, rank, NUM_WORKERS)
    batches, total_steps = Batches(folder, arguments.seed), int(arguments.total_tokens // STEP_TOKENS)
    num_experts, start_step = config.n_routed_experts, shared["step"]
    last_step = min(total_steps, arguments.until_step or total_steps)
    saved_s = logged_s = time.monotonic()
    log_loss, log_steps, log_load = 0.0, 0, torch.zeros(len(model.moe_layers), num_experts)
    for step in range(start_step, last_step):
        factor, bias_step, length = schedule(step, total_steps, shared["warm_from"])
        grads[rank][accumulated].zero_()
        loss = model.loss(batches.batch(step, rank, length))
        loss.backward()
        for i, moe in enumerate(model.moe_layers):
            shared["load"][rank, i] = torch.bincount(moe.last_expert.flatten(), minlength=num_experts).float()
        shared["scalars"][rank, 0] = loss.item()
        barrier.wait()
        shared["scalars"][rank, 1] = optimizer.reduce(grads)
        shared["scalars"][rank, 2] = float(bool(stop))
        barrier.wait()
        grad_norm = float(shared["scalars"][:, 1].sum()) ** 0.5
        ending = bool(shared["scalars"][:, 2].any())
        optimizer.step(
            grads[0], grad_norm, CLIP, step + 1 - shared["warm_from"], {g: r * factor for g, r in LEARNING_RATE.items()}
        )
        if rank == 0:
            load = shared["load"].sum(0)
            shared["load_ema"].mul_(LOAD_EMA).add_(load, alpha=1 - LOAD_EMA)
            ema = shared["load_ema"]
            shared["bias"].add_(torch.sign(ema.mean(1, keepdim=True) - ema), alpha=bias_step)
            log_loss += float(shared["scalars"][:, 0].mean())
            log_load += load
            log_steps += 1
            done, now_s = step + 1, time.monotonic()
            if done % arguments.log_every == 0 or done == last_step:
                ratio = log_load / log_load.mean(1, keepdim=True)
                steps, log_steps = log_steps, 0
                line = (
                    f"step {done} tokens {done * STEP_TOKENS / 1e6:.3f}M loss {log_loss / steps:.4f} "
                    f"tok/s {steps * STEP_TOKENS / (now_s - logged_s):.0f} lr {factor:.3f} grad {grad_norm:.2f} "
                    f"max/mean {' '.join(f'{v:.2f}' for v in ratio.amax(1).tolist())} cold {int((ratio < 0.1).sum())}"
                )
                with open(folder / "train.log", "a", encoding="utf-8") as file:
                    file.write(line + "\n")
                print(line, flush=True)
                log_loss, logged_s = 0.0, now_s
                log_load.zero_()
        barrier.wait()
        if rank == 0 and (ending or step + 1 == last_step or now_s - saved_s > arguments.checkpoint_every_s):
            save(
                folder / "checkpoints" / f"step_{step + 1:06d}.pt",
                step=step + 1,
                tokens=(step + 1) * STEP_TOKENS,
                config=asdict(config),
                flat=flat,
                state=dict(state),
                bias=shared["bias"],
                load_ema=shared["load_ema"],
                total_tokens=arguments.total_tokens,
                seed=arguments.seed,
                warm_from=shared["warm_from"],
            )
            saved_s = now_s
        if ending:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--total-tokens", type=float, default=24e6)
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--checkpoint-every-s", type=float, default=300)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--until-step", type=int, default=0, help="end here, schedule unchanged (for short tests)")
    parser.add_argument(
        "--from-model", type=Path, help="exported folder to go on from where no checkpoint is left; warms up again"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (arguments.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = NanoConfig(compute_dtype=resolve_dtype(arguments.compute_dtype))
    model = Nano(config)
    layout, num_moe = FlatLayout(model), len(model.moe_layers)
    path, warm_from = newest(arguments.folder), 0
    if path:
        old = torch.load(path, weights_only=True)
        # The data order depends on the seed; the total only matters once a schedule has started to decay.
        unchanged_tokens = BIAS_STEPS[0][0] * min(old["total_tokens"], arguments.total_tokens)
        if old["seed"] != arguments.seed or (
            old["total_tokens"] != arguments.total_tokens and old["tokens"] > unchanged_tokens
        ):
            raise SystemExit(
                f"{path.name} was trained with --total-tokens {old['total_tokens']:g} --seed {old['seed']} and is past the "
                f"first change of a schedule: give the same values or another --folder"
            )
        flat, state, step = old["flat"], old["state"], old["step"]
        bias, load_ema, warm_from = old["bias"], old["load_ema"], old.get("warm_from", 0)
    else:
        flat, state, step = torch.zeros(layout.num_parameters), Optimizer.new_state(layout), 0
        layout.bind(model, flat, None)
        model.init_weights(arguments.seed, EMBED_STD)
        bias = torch.zeros(num_moe, config.n_routed_experts)
        if arguments.from_model:
            step = warm_from = read_exported(arguments.from_model, model, bias)
        load_ema = torch.full_like(bias, STEP_TOKENS * config.num_experts_per_tok / config.n_routed_experts)
    shared = {
        "config": config,
        "step": step,
        "warm_from": warm_from,
        "flat": flat.share_memory_(),
        "grads": [torch.zeros(layout.num_parameters).share_memory_() for _ in range(NUM_WORKERS)],
        "state": {k: v.share_memory_() for k, v in state.items()},
        "bias": bias.share_memory_(),
        "load_ema": load_ema.share_memory_(),
        "scalars": torch.zeros(NUM_WORKERS, 3, dtype=torch.float64).share_memory_(),
        "load": torch.zeros(NUM_WORKERS, num_moe, config.n_routed_experts).share_memory_(),
    }
    print(f"{layout.num_parameters / 1e6:.2f} M parameters, {config.compute_dtype}, from step {step}", flush=True)
    context = mp.get_context("fork")
    barrier = context.Barrier(NUM_WORKERS)
    workers = [context.Process(target=work, args=(r, arguments, shared, barrier)) for r in range(NUM_WORKERS)]
    for worker in workers:
        worker.start()
    (arguments.folder / "train.pid").write_text(f"{os.getpgid(0)}\n")
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(w.pid, signal.SIGTERM) for w in workers])
    for worker in workers:
        worker.join()
    raise SystemExit(max(abs(w.exitcode) for w in workers))


if __name__ == "__main__":
    main()
