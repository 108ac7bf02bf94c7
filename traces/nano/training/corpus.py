"""Corpus of nano: nine domains of freely licensed text, taken from Debian 12 packages.

Knows: which package feeds which domain, how each kind of file is cleaned, and the split by
document. Does not know: tokens, the network, or whether a licence is right (see the model card
for what debian/copyright says). Nothing fetched is ever placed in the tree; `--folder` holds it.

    python corpus.py --folder CACHE --fetch      # apt-get download, dpkg-deb -x, then clean
"""

import argparse
import hashlib
import html
import json
import re
import subprocess
import zlib
from pathlib import Path

TRAIN_BYTES_PER_DOMAIN = 3_000_000
NUM_HELD_OUT_DOCUMENTS = 32
MIN_DOCUMENT_BYTES = 400
MAX_DOCUMENT_BYTES = {"python": 100_000, "html": 30_000, "formal": 150_000}  # else 60_000
MIN_HELD_OUT_BYTES = 1_500

# domain -> list of (package, glob inside the unpacked package, cleaner, share of the byte budget)
HELP = "usr/share/libreoffice/help/{}/text/**/*.html"
BOOK = "usr/share/doc/debian-handbook/html/{}/*.html"
SOURCES = {
    "english": [
        ("bible-kjv-text", "usr/lib/bible.data", "bible", 0.45),
        ("dict-jargon", "usr/share/dictd/jargon.dict.dz", "jargon", 0.2),
        ("libreoffice-help-en-us", HELP.format("en-US"), "prose", 0.35),
    ],
    "german": [
        ("debian-handbook", BOOK.format("de-DE"), "prose", 0.5),
        ("libreoffice-help-de", HELP.format("de"), "prose", 1.0),
    ],
    "french": [
        ("debian-handbook", BOOK.format("fr-FR"), "prose", 0.5),
        ("libreoffice-help-fr", HELP.format("fr"), "prose", 1.0),
    ],
    "russian": [
        ("debian-handbook", BOOK.format("ru-RU"), "prose", 0.5),
        ("libreoffice-help-ru", HELP.format("ru"), "prose", 1.0),
    ],
    "chinese": [
        ("debian-handbook", BOOK.format("zh-CN"), "prose", 0.5),
        ("libreoffice-help-zh-cn", HELP.format("zh-CN"), "prose", 1.0),
    ],
    "python": [("libpython3.11-stdlib", "usr/lib/python3.11/**/*.py", "code", 1.0)],
    "go": [("golang-1.19-src", "usr/share/go-1.19/src/**/*.go", "code", 1.0)],
    "html": [("python3.11-doc", "usr/share/doc/python3.11/html/**/*.html", "markup", 1.0)],
    "formal": [
        ("libcoq-mathcomp-ssreflect", "**/*.v", "code", 1.0),
        ("libcoq-mathcomp-fingroup", "**/*.v", "code", 1.0),
        ("libcoq-mathcomp-algebra", "**/*.v", "code", 1.0),
    ],
}
TRANSLATED = ("german", "french", "russian", "chinese")
EXTRA_PACKAGES = ["bible-kjv", "libcoq-mathcomp-field", "libcoq-mathcomp-character", "libcoq-mathcomp-solvable"]
SOURCES["formal"] += [(p, "**/*.v", "code", 1.0) for p in EXTRA_PACKAGES[1:]]

LICENCE_WORDS = re.compile(r"copyright|licen[cs]e|\(c\)|distributed under|all rights reserved", re.I)


def fetch(raw: Path) -> None:
    """Download and unpack every package below `raw`; needs apt sources of Debian 12."""
    packages = sorted({source[0] for sources in SOURCES.values() for source in sources}) + EXTRA_PACKAGES
    for package in dict.fromkeys(packages):
        if (raw / package).exists():
            continue
        subprocess.run(["apt-get", "download", package], cwd=raw, check=True, capture_output=True)
        archive = next(raw.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=raw, check=True)
        archive.unlink()


def bible(path: Path, raw: Path):
    """Chapters as documents; the `bible` program of bible-kjv decodes the packed text."""
    out = subprocess.run(
        [raw / "bible-kjv/usr/bin/bible", "-l", "100000", "-p", path.parent, "-f", "Gen1:1-Rev22:21"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    chapters: dict[str, list[str]] = {}
    for line in out.splitlines():
        match = re.match(r"(\S+?:?\d*?):?(\d+) (.*)", line)
        if match:
            chapters.setdefault(match[1], []).append(match[3])
    for name, verses in chapters.items():
        yield name, "\n".join(verses)


def jargon(path: Path, raw: Path):
    """Entries of a dictd file, about 4 kB of consecutive entries as one document."""
    text = zlib.decompressobj(31).decompress(path.read_bytes()).decode("utf-8", "replace")
    text = re.sub(r"\n +", lambda m: "\n" if "\n" in m[0] else m[0], text)
    entries, block = re.split(r"\n(?=\S[^\n]*\n)", text), ""
    for i, entry in enumerate(entries):
        block += entry.strip() + "\n\n"
        if len(block) > 4000:
            yield f"entries_to_{i}", block
            block = ""


def prose(path: Path, raw: Path):
    """Headings, paragraphs and list items of an HTML page, without tags."""
    page = path.read_text("utf-8", "replace")
    page = page.split('id="DisplayArea"')[-1].split('<div id="SearchFrame"')[0]
    page = re.sub(r"<(script|style|pre class=\"programlisting\").*?</\1>", "", page, flags=re.S)
    blocks = re.findall(r"<(h[1-6]|p|li|dt|dd|td)\b[^>]*>(.*?)</\1>", page, flags=re.S)
    lines = (re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", body))).strip() for _, body in blocks)
    yield path.stem, "\n".join(line for line in lines if len(line) > 1)


def markup(path: Path, raw: Path):
    """The main part of a Sphinx page with its tags."""
    page = path.read_text("utf-8", "replace")
    body = re.search(r'<div class="body" role="main">(.*?)<div class="clearer">', page, re.S)
    if body and "genindex" not in path.name:
        yield path.stem, re.sub(r"\n\s*\n+", "\n", body[1])


def code(path: Path, raw: Path):
    """A source file without its leading licence comment; generated files are dropped."""
    text = path.read_text("utf-8", "replace")
    if re.search(r"generated by|DO NOT EDIT", text[:3000]) or "\ufffd" in text:
        return
    if re.search(r"/(test|tests|idlelib|lib2to3|testdata|vendor|encodings|pydoc_data|syscall|unicode)/", str(path)):
        return
    text = re.sub(r"\A(?:#!.*\n)", "", text)
    head = re.match(r"\s*(\(\*.*?\*\)\s*)+|(\s*(//|#)[^\n]*\n)+", text, re.S)
    if head and LICENCE_WORDS.search(head[0]):
        text = text[head.end() :]
    yield path.stem, text


CLEANERS = {"bible": bible, "jargon": jargon, "prose": prose, "markup": markup, "code": code}


def documents_of(domain: str, raw: Path) -> list[dict]:
    """Cleaned, deduplicated documents of a domain in a fixed pseudo-random order.

    Untranslated (English) lines are dropped. A paragraph of more than 60 characters is kept once per prose domain, so that shared
    boilerplate cannot carry an answer from training into held-out text.
    """
    seen, documents = set(), []
    if domain in TRANSLATED:
        for path in (raw / "libreoffice-help-en-us").glob(HELP.format("en-US")):
            for _, text in prose(path, raw):
                seen.update(line for line in text.split("\n") if len(line) > 15)
    for package, pattern, cleaner, share in SOURCES[domain]:
        budget = share * TRAIN_BYTES_PER_DOMAIN * 1.5
        paths = sorted(
            (raw / package).glob(pattern), key=lambda p: hashlib.md5(str(p.relative_to(raw)).encode()).digest()
        )
        found = []
        for path in paths:
            if not path.is_file() or path.is_symlink():
                continue
            for name, text in CLEANERS[cleaner](path, raw):
                if cleaner in ("prose", "jargon"):
                    lines = []
                    for line in text.split("\n"):
                        if len(line) > 15 and domain in ("russian", "chinese") and line.isascii():
                            continue
                        if line not in seen:
                            lines.append(line)
                        if len(line) > 60:
                            seen.add(line)
                    text = "\n".join(lines)
                text = text.strip() + "\n"
                text = text[: MAX_DOCUMENT_BYTES.get(domain, 60_000)]  # one file must not fill a domain
                digest = hashlib.md5(text.encode()).hexdigest()
                if len(text.encode()) >= MIN_DOCUMENT_BYTES and digest not in seen:
                    found.append({"id": f"{package}/{path.stem}/{name}", "text": text, "digest": digest})
                seen.add(digest)
        found.sort(key=lambda d: d["digest"])
        for document in found:
            budget -= len(document["text"].encode())
            if budget < 0:
                break
            documents.append(document)
    return sorted(documents, key=lambda d: d["digest"])


def build(folder: Path) -> None:
    out = folder / "corpus"
    out.mkdir(exist_ok=True)
    for domain in SOURCES:
        documents = documents_of(domain, folder / "raw")
        long_enough = [d for d in documents if len(d["text"].encode()) >= MIN_HELD_OUT_BYTES]
        # Short half only: a held-out giant would cost a small domain too much training text.
        median_bytes = sorted(len(d["text"].encode()) for d in long_enough)[len(long_enough) // 2]
        short = [d for d in long_enough if len(d["text"].encode()) <= median_bytes]
        held_out = short[:NUM_HELD_OUT_DOCUMENTS]
        held_ids = {d["digest"] for d in held_out}
        train, num_bytes = [], 0
        for document in documents:
            if document["digest"] not in held_ids and num_bytes < TRAIN_BYTES_PER_DOMAIN:
                train.append(document)
                num_bytes += len(document["text"].encode())
        for split, chosen in (("train", train), ("held_out", held_out)):
            with open(out / f"{domain}.{split}.jsonl", "w", encoding="utf-8") as file:
                for document in chosen:
                    file.write(json.dumps({"id": document["id"], "text": document["text"]}, ensure_ascii=False) + "\n")
        held_bytes = sum(len(d["text"].encode()) for d in held_out)
        print(
            f"{domain:9s} train {len(train):5d} documents {num_bytes / 1e6:6.2f} MB   "
            f"held-out {len(held_out):3d} documents {held_bytes / 1e6:5.2f} MB",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true")
    arguments = parser.parse_args()
    (arguments.folder / "raw").mkdir(parents=True, exist_ok=True)
    if arguments.fetch:
        fetch(arguments.folder / "raw")
    build(arguments.folder)
