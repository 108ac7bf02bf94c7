"""Tokenizer of nano (byte-level BPE) and the token files that training reads.

Knows: the pre-split rule, the special tokens, how documents become one stream per domain.
Does not know: the network, or where the text came from.

    python tokenizer.py --folder CACHE      # after corpus.py
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
BOS, EOS = "<|begin|>", "<|end|>"
BOS_ID, EOS_ID = 0, 1
TRAIN_BYTES_PER_DOMAIN = 1_200_000
# newlines | indentation | letters with a leading space | 1-3 digits | punctuation
PRE_SPLIT = r"\n+|[ \t]{2,}(?=\S)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def read_documents(folder: Path, domain: str, split: str) -> list[dict]:
    with open(folder / "corpus" / f"{domain}.{split}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def domains_of(folder: Path) -> list[str]:
    return sorted(p.name.removesuffix(".train.jsonl") for p in (folder / "corpus").glob("*.train.jsonl"))


def train_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )

    def texts():
        for domain in domains_of(folder):
            num_bytes = 0
            for document in read_documents(folder, domain, "train"):
                yield document["text"]
                num_bytes += len(document["text"].encode())
                if num_bytes > TRAIN_BYTES_PER_DOMAIN:
                    break

    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def encode_split(tokenizer: Tokenizer, folder: Path, domain: str, split: str) -> None:
    """Write `tokens/DOMAIN.SPLIT.npz`: tokens uint16 (each document: BOS text EOS), starts int64 [D+1]."""
    documents = read_documents(folder, domain, split)
    encoded = [[BOS_ID, *e.ids, EOS_ID] for e in tokenizer.encode_batch([d["text"] for d in documents])]
    starts = np.cumsum([0, *map(len, encoded)])
    tokens = np.fromiter((t for ids in encoded for t in ids), dtype=np.uint16, count=starts[-1])
    num_bytes = np.array([len(d["text"].encode()) for d in documents])
    np.savez(folder / "tokens" / f"{domain}.{split}.npz", tokens=tokens, starts=starts, num_bytes=num_bytes)
    print(
        f"{domain:9s} {split:8s} {starts[-1] / 1e6:6.3f} M tokens  {num_bytes.sum() / starts[-1]:.2f} bytes/token",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    (folder / "tokens").mkdir(exist_ok=True)
    tokenizer = train_tokenizer(folder)
    tokenizer.save(str(folder / "tokens" / "tokenizer.json"))
    for domain in domains_of(folder):
        for split in ("train", "held_out"):
            encode_split(tokenizer, folder, domain, split)
