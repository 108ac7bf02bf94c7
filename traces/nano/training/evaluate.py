"""The release gates of nano on held-out documents: a table, evaluation.json and the block in the model card.

Knows: bits per byte of the network (as trained, as shipped in int4, without routed experts) and of
3-gram and 5-gram models on the same windows; how expert load differs between domains, against
shuffled labels; cold experts; one sample per domain. Does not know: speed, or quality beyond this.

    python evaluate.py --folder CACHE --out ..                               # newest checkpoint, all windows
    python evaluate.py --folder CACHE --windows-per-document 1 --no-samples  # quick look, writes nothing
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from export import shipped_twin, tensors_of
from model import Nano
from ngram import NgramModel
from tokenizer import EOS_ID, VOCAB_SIZE, domains_of, read_documents
from tokenizers import Tokenizer
from train import load_model, newest

WINDOW_TOKENS, BATCH_ROWS, NUM_SHUFFLES, COLD_FRACTION = 256, 16, 50, 0.10
PROMPT_TOKENS, SAMPLE_TOKENS, TEMPERATURE, TOP_K = 64, 96, 0.7, 40
BEGIN, END = "<!-- evaluation: written by training/evaluate.py -->", "<!-- end of evaluation -->"


class Windows:
    """Consecutive windows of held-out documents; the last one of a document is padded and masked."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, per_document: int):
        self.domains, rows, mask, self.domain, self.document = domains_of(folder), [], [], [], []
        num_documents = 0
        for d, domain in enumerate(self.domains):
            data = np.load(folder / "tokens" / f"{domain}.held_out.npz")
            for begin, end in zip(data["starts"][:-1], data["starts"][1:]):
                for w in range(per_document):
                    row = data["tokens"][begin + w * WINDOW_TOKENS : min(end, begin + (w + 1) * WINDOW_TOKENS + 1)]
                    if len(row) < 33:
                        break
                    padding = WINDOW_TOKENS + 1 - len(row)
                    rows.append(np.pad(row.astype(np.int64), (0, padding), constant_values=EOS_ID))
                    mask.append(np.arange(WINDOW_TOKENS) < len(row) - 1)
                    self.domain.append(d)
                    self.document.append(num_documents)
                num_documents += 1
        self.rows, self.mask = np.stack(rows), np.stack(mask)  # [W, T + 1], [W, T]
        self.domain, self.document = np.array(self.domain), np.array(self.document)
        # One character of a byte-level token is one byte; special tokens stand for no byte.
        token_bytes = np.array(
            [len(tokenizer.id_to_token(i)) if i > EOS_ID else 0 for i in range(tokenizer.get_vocab_size())]
        )
        self.num_bytes = (token_bytes[self.rows[:, 1:]] * self.mask).sum(1)

    def bits_per_byte(self, nats: np.ndarray) -> np.ndarray:
        """nats [W, T] -> float [D], one per domain."""
        per_window = (nats * self.mask).sum(1) / np.log(2)
        return np.array(
            [
                per_window[self.domain == d].sum() / self.num_bytes[self.domain == d].sum()
                for d in range(len(self.domains))
            ]
        )


@torch.no_grad()
def run(model: Nano, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """-> nats [W, T] and load [number of documents, L, E] (routings of unmasked tokens)."""
    nats = np.zeros(windows.mask.shape)
    num_experts = model.c.n_routed_experts
    load = np.zeros((windows.document.max() + 1, len(model.moe_layers), num_experts))
    for a in range(0, len(nats), BATCH_ROWS):
        rows = torch.from_numpy(windows.rows[a : a + BATCH_ROWS])
        logits = model.logits(rows[:, :-1])
        nats[a : a + BATCH_ROWS] = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:], reduction="none"
        ).numpy()
        if model.moe_layers[0].routed_enabled:
            for i, moe in enumerate(model.moe_layers):
                expert = moe.last_expert.view(len(rows), -1, model.c.num_experts_per_tok).numpy()
                for w in range(len(rows)):
                    chosen = expert[w][windows.mask[a + w]].ravel()
                    load[windows.document[a + w], i] += np.bincount(chosen, minlength=num_experts)
    return nats, load


def divergence(load: np.ndarray, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Jensen-Shannon divergence in bits between the expert loads of the labels; load [documents, L, E] -> [L]."""
    p = np.stack([load[label == d].sum(0) for d in range(num_labels)])
    p /= p.sum(-1, keepdims=True)

    def entropy(q):
        return -(q * np.log2(np.maximum(q, 1e-300))).sum(-1)

    return entropy(p.mean(0)) - entropy(p).mean(0)


def routing_report(windows: Windows, load: np.ndarray, seed: int = 0) -> dict:
    num_domains = len(windows.domains)
    label = np.zeros(len(load), int)
    label[windows.document] = windows.domain
    rng = np.random.default_rng(seed)
    null = np.stack([divergence(load, rng.permutation(label), num_domains) for _ in range(NUM_SHUFFLES)])
    per_domain = np.stack([load[label == d].sum(0) for d in range(num_domains)])
    per_domain /= per_domain.mean(-1, keepdims=True)  # [D, L, E], mean 1
    pooled = per_domain.mean(0)
    return {
        "jsd_bits": divergence(load, label, num_domains).tolist(),
        "null_max_bits": null.max(0).tolist(),
        "null_mean_bits": null.mean(0).tolist(),
        "pooled_max_over_mean": pooled.max(-1).tolist(),
        "pooled_min_over_mean": pooled.min(-1).tolist(),
        "num_cold": (pooled < COLD_FRACTION).sum(-1).tolist(),
        "domain_max_over_mean_median": np.median(per_domain.max(-1), 0).tolist(),
        "num_experts_over_half_from_one_domain": (per_domain.max(0) / per_domain.sum(0).clip(1e-9) > 0.5)
        .sum(-1)
        .tolist(),
    }


def ngram_bits(folder: Path, windows: Windows) -> dict[int, list[float]]:
    """Cached by the window set: the counts take a minute and do not depend on the checkpoint."""
    cache = folder / f"ngram_{len(windows.rows)}_{int(windows.rows.sum())}.json"
    if not cache.exists():
        streams = [np.load(f)["tokens"] for f in sorted((folder / "tokens").glob("*.train.npz"))]
        model, nats = (
            NgramModel(streams, 5, VOCAB_SIZE),
            {3: np.zeros(windows.mask.shape), 5: np.zeros(windows.mask.shape)},
        )
        for i, row in enumerate(windows.rows):
            costs = model.nats(row)
            nats[3][i], nats[5][i] = costs[3], costs[5]
        cache.write_text(json.dumps({n: windows.bits_per_byte(v).tolist() for n, v in nats.items()}))
    return {int(n): v for n, v in json.loads(cache.read_text()).items()}


@torch.no_grad()
def samples(model: Nano, folder: Path, tokenizer: Tokenizer, seed: int = 3) -> list[dict]:
    generator, documents = torch.Generator().manual_seed(seed), {}
    for domain in domains_of(folder):
        documents[domain] = next(
            ids
            for d in read_documents(folder, domain, "held_out")[5:]
            if len(ids := tokenizer.encode(d["text"]).ids) >= PROMPT_TOKENS
        )[:PROMPT_TOKENS]
    tokens = torch.tensor(list(documents.values()))
    for _ in range(SAMPLE_TOKENS):
        logits = model.lm_head(model.hidden(tokens)[:, -1]) / TEMPERATURE
        value, index = logits.topk(TOP_K, -1)
        tokens = torch.cat([tokens, index.gather(1, torch.multinomial(value.softmax(-1), 1, generator=generator))], 1)
    return [
        {
            "domain": d,
            "prompt": tokenizer.decode(row[:PROMPT_TOKENS]),
            "continuation": tokenizer.decode(row[PROMPT_TOKENS:]),
        }
        for d, row in zip(documents, tokens.tolist())
    ]


def evaluate(model: Nano, folder: Path, per_document: int, with_samples: bool) -> dict:
    tokenizer = Tokenizer.from_file(str(folder / "tokens" / "tokenizer.json"))
    windows = Windows(folder, tokenizer, per_document)
    twin = shipped_twin(model.c, tensors_of(model))
    trained = windows.bits_per_byte(run(model, windows)[0])
    nats, load = run(twin, windows)
    shipped = windows.bits_per_byte(nats)
    for moe in twin.moe_layers:
        moe.routed_enabled = False
    without = windows.bits_per_byte(run(twin, windows)[0])
    for moe in twin.moe_layers:
        moe.routed_enabled = True
    ngram = ngram_bits(folder, windows)
    routing = routing_report(windows, load)
    best = min(np.mean(ngram[3]), np.mean(ngram[5]))
    num_below = int((shipped < np.minimum(ngram[3], ngram[5])).sum())
    gates = {
        "mean bits per byte below the better n-gram": (
            f"{shipped.mean():.3f} < {best:.3f}",
            bool(shipped.mean() < best),
        ),
        "below both n-grams in at least 3/4 of the domains": (
            f"{num_below} of {len(shipped)}",
            num_below >= 0.75 * len(shipped),
        ),
        "routed experts carry at least 0.3 bits per byte": (
            f"{without.mean() - shipped.mean():+.3f}",
            bool(without.mean() - shipped.mean() >= 0.3),
        ),
        "divergence of expert load between domains above every shuffle, in every layer": (
            f"smallest ratio {min(np.array(routing['jsd_bits']) / routing['null_max_bits']):.2f}",
            bool((np.array(routing["jsd_bits"]) > routing["null_max_bits"]).all()),
        ),
        "no cold expert (under 10 % of the mean load)": (
            f"{sum(routing['num_cold'])} cold",
            sum(routing["num_cold"]) == 0,
        ),
    }
    return {
        "domains": windows.domains,
        "num_windows": len(windows.rows),
        "num_bytes": int(windows.num_bytes.sum()),
        "bits_per_byte": {
            "trained_float32": trained.tolist(),
            "shipped_int4": shipped.tolist(),
            "without_routed_experts": without.tolist(),
            "ngram_3": ngram[3],
            "ngram_5": ngram[5],
        },
        "int4_cost_bits_per_byte": float(shipped.mean() - trained.mean()),
        "routing": routing,
        "gates": {k: {"value": v, "passed": bool(ok)} for k, (v, ok) in gates.items()},
        "samples": samples(twin, folder, tokenizer) if with_samples else [],
    }


def markdown(result: dict) -> str:
    bits, routing = result["bits_per_byte"], result["routing"]
    columns = [bits[k] for k in ("shipped_int4", "trained_float32", "without_routed_experts", "ngram_3", "ngram_5")]
    lines = [
        f"After {result['tokens'] / 1e6:.1f} M training tokens (step {result['step']}); {result['num_windows']} held-out windows "
        f"of at most {WINDOW_TOKENS} tokens, {result['num_bytes'] / 1e3:.0f} kB.",
        "",
        "| gate | value | passed |",
        "|---|---|---|",
    ]
    lines += [f"| {k} | {g['value']} | {'yes' if g['passed'] else '**no**'} |" for k, g in result["gates"].items()]
    lines += [
        "",
        f"Bits per byte (int4 costs {result['int4_cost_bits_per_byte']:+.4f} on the mean):",
        "",
        "| domain | shipped int4 | float32 | without routed experts | 3-gram | 5-gram |",
        "|---|---|---|---|---|---|",
    ]
    for i, domain in enumerate(result["domains"]):
        lines.append(f"| {domain} | " + " | ".join(f"{c[i]:.3f}" for c in columns) + " |")
    lines.append("| mean | " + " | ".join(f"{np.mean(c):.3f}" for c in columns) + " |")
    lines += [
        "",
        "Expert load (shipped weights; divergence in bits between domains; null: labels shuffled by document):",
        "",
        "| MoE layer | divergence | null mean (largest of 50) | pooled max/mean | min/mean | cold | max/mean inside a domain (median) | experts with > 50 % from one domain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for i in range(len(routing["jsd_bits"])):
        lines.append(
            f"| {i + 1} | {routing['jsd_bits'][i]:.3f} | {routing['null_mean_bits'][i]:.3f} ({routing['null_max_bits'][i]:.3f}) | "
            f"{routing['pooled_max_over_mean'][i]:.2f} | {routing['pooled_min_over_mean'][i]:.2f} | {routing['num_cold'][i]} | "
            f"{routing['domain_max_over_mean_median'][i]:.1f} | {routing['num_experts_over_half_from_one_domain'][i]} |"
        )
    for sample in result["samples"]:
        lines += [
            "",
            f"{sample['domain']} (prompt, then what nano writes; T {TEMPERATURE}, top {TOP_K}):",
            "",
            "```text",
            f"{sample['prompt']}\u2502{sample['continuation']}".replace("```", "'''"),
            "```",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder of README.md and evaluation.json to update")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--windows-per-document", type=int, default=3)
    parser.add_argument("--no-samples", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, content = load_model(arguments.checkpoint or newest(arguments.folder))
    result = {
        "step": content["step"],
        "tokens": content["tokens"],
        **evaluate(model, arguments.folder, arguments.windows_per_document, not arguments.no_samples),
    }
    text = markdown(result)
    print(text)
    if arguments.out:
        (arguments.out / "evaluation.json").write_text(
            json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        card = arguments.out / "README.md"
        before, rest = card.read_text(encoding="utf-8").split(BEGIN)
        card.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
