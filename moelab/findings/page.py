"""The tables of docs/findings.md as Markdown.  Floor 5.

Everything between the two markers of the page is replaced (``markdown``). Knows studies and how to print them. Does not
know what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moelab.findings.claims import CLAIMS, Claim
from moelab.findings.compare import Interval
from moelab.findings.counted import Counted
from moelab.findings.markdown import kind_of, markdown_table, replace_between
from moelab.findings.study import SHARES, Study

BEGIN = "<!-- findings: written by `moelab findings`, do not edit below -->"
END = "<!-- end of findings -->"
MOST_TIES = 4


def update_page(studies: Sequence[Study], path: str | Path) -> Path:
    """Put the tables between the markers of ``path``, whole or not at all.

    Raises ``ValueError`` where the page lacks the markers.
    """
    return replace_between(path, BEGIN, END, tables(studies), title="Findings")


def tables(studies: Sequence[Study]) -> str:
    """All tables, Markdown."""
    parts = [_traces(studies), _winners(studies), _claims(studies), _best_possible(studies), _cliff(studies)]
    return "\n".join(parts + [_all_policies(study) for study in studies])


def _about(study: Study) -> str:
    header = study.trace.header
    requests = f"requests: {_requests(study)}"
    return (
        f"{study.name} ({header.model}, {kind_of(study.trace)}, {study.steps}, {study.num_tokens:,} tokens, "
        f"{requests}, {header.licence})"
    )


def _traces(studies: Sequence[Study]) -> str:
    head = (
        "trace",
        "model",
        "routing",
        "L x E, top-K",
        "tokens scored",
        "requests",
        "steps",
        "held out",
        "licence",
        "source",
    )
    rows = [
        (
            s.name, s.trace.header.model, kind_of(s.trace),
            f"{s.trace.header.num_layers} x {s.trace.header.num_experts}, {s.trace.header.top_k}", f"{s.num_tokens:,}",
            _requests(s), s.steps, s.held_out, s.trace.header.licence, s.source,
        )
        for s in studies
    ]  # fmt: skip
    return "## The traces\n\n" + markdown_table(head, rows)


def _requests(study: Study) -> str:
    requests = len(set(study.trace.tokens.request.tolist()))
    if study.num_clusters == 1:
        return "1: no interval" if requests == 1 else f"{requests}, decoded together: no interval"
    return f"{requests}" if requests == study.num_clusters else f"{requests} in {study.num_clusters} batches"


def _winners(studies: Sequence[Study]) -> str:
    head = (
        "trace", "slots a layer", "no fast tier", "fewest reads", "reads (95%)", "ties with it", "most hits",
        "its reads", "LRU", "link bytes a token: fewest reads, LRU",
    )  # fmt: skip
    rows = []
    for study in studies:
        for share in SHARES:
            online = study.online(share)
            best = online[0]
            by_hits = max(online, key=lambda one: one.value("hit_rate"))
            lru, ties = study.find(share, "lru"), _ties(study, online, best)
            rows.append(
                (
                    study.name, f"{study.slots[share]} ({share:.0%})", f"{study.uses_per_layer_step:.2f}",
                    f"**{best.policy}**" if ties == "nobody" else best.policy,
                    _interval(study.bootstrap.interval(best, "reads")), ties,
                    by_hits.policy, f"{by_hits.value('reads'):.2f}", "" if lru is None else f"{lru.value('reads'):.2f}",
                    f"{_link(study, best)}, {'' if lru is None else _link(study, lru)}",
                )
            )  # fmt: skip
    return (
        "## Which policy reads least\n\n"
        "Reads per layer-step: distinct misses + uploads + prefetches. Bold: nobody ties.\n\n"
        + markdown_table(head, rows)
    )


def _ties(study: Study, online: Sequence[Counted], best: Counted) -> str:
    if study.num_clusters < 2:
        return "no interval"
    names = [one.policy for one in study.bootstrap.ties(online, best)]
    rest = len(names) - MOST_TIES
    return ", ".join(names[:MOST_TIES]) + (f" and {rest} more" if rest > 0 else "") if names else "nobody"


def _link(study: Study, one: Counted) -> str:
    """Bytes over the link per token; layers of unequal bytes by their mean."""
    size = sum(study.trace.header.expert_bytes) / study.trace.header.num_layers
    if not size:
        return "unknown"
    copied = (one.column("uploads") + one.column("prefetches")).sum()
    each = copied * size / study.num_tokens
    return f"{each / 1e6:,.1f} MB" if each >= 1e6 else f"{each / 1e3:,.1f} kB"


def _interval(interval: Interval, sign: str = "") -> str:
    if not interval.known:
        return f"{interval.value:{sign}.2f}"
    return f"{interval.value:{sign}.2f} ({interval.low:{sign}.2f} to {interval.high:{sign}.2f})"


def _claims(studies: Sequence[Study]) -> str:
    parts = ["## What papers and engines say\n"]
    parts.append(
        "Difference to LRU at the same capacity, paired by request: points of hit rate per request (95% interval), "
        "then reads per layer-step. Slots per layer; Least-Stale and its LRU in one pool for all layers.\n"
    )
    for share in (0.1, 0.2):
        head = (
            f"claim, at {share:.0%} of the experts",
            *(f"{study.name} ({kind_of(study.trace)})" for study in studies),
        )
        rows = []
        for claim in CLAIMS:
            cells = [_claim(study, share, claim) for study in studies]
            if any(cells):
                rows.append((f"{claim.better}: {claim.says} ({claim.source})", *cells))
        parts.append(markdown_table(head, rows))
    return "\n".join(parts)


def _claim(study: Study, share: float, claim: Claim) -> str:
    pair = study.pair(share, claim.better, claim.worse, claim.scope)
    if pair is None:
        return ""
    hits = study.bootstrap.difference(*pair, "hit_rate")
    points = Interval(100 * hits.value, 100 * hits.low, 100 * hits.high)
    reads = study.bootstrap.difference(*pair, "reads")
    return f"{_verdict(points)} {_interval(points, '+')}; reads {_interval(reads, '+')}"


def _verdict(points: Interval) -> str:
    if not points.known:
        return "(no interval)"
    if points.low > 0:
        return "holds:"
    return "**reverse**:" if points.high < 0 else "tie:"


def _best_possible(studies: Sequence[Study]) -> str:
    head = (
        "trace",
        "slots a layer",
        "MIN-cost (bound)",
        "MIN with bypass",
        "best online",
        "its reads",
        "LRU",
        "MIN on demand",
    )
    rows = []
    for study in studies:
        for share in SHARES:
            reads = study.on_first[share]
            online = {name: value for name, value in reads.items() if not name.startswith("min_")}
            best = min(online, key=online.__getitem__)
            wanted = [reads.get(name) for name in ("min_cost", "min_bypass")]
            rest = [reads.get(name) for name in ("lru", "min_demand")]
            rows.append(
                (
                    f"{study.name}, first {study.num_first} steps", f"{study.slots[share]} ({share:.0%})",
                    *(_number(value) for value in wanted), best, _number(online[best]), *(_number(v) for v in rest),
                )
            )  # fmt: skip
    note = (
        "Reads per layer-step from an empty tier. MIN-cost at price 1 is the fewest that any admissions and evictions "
        "without prefetching reach; the two MINs have the fewest misses, not reads.\n\n"
    )
    return "## How far from the best possible\n\n" + note + markdown_table(head, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cliff(studies: Sequence[Study]) -> str:
    head = (
        "trace",
        "slots in all",
        "of what one step uses",
        "global LRU",
        "global Least-Stale",
        "LRU per layer, as many slots",
    )
    rows = []
    for study in studies:
        cycle = study.trace.header.num_layers * study.uses_per_layer_step
        of_layer = {each * study.trace.header.num_layers: share for share, each in study.slots.items()}
        for slots in sorted({slots for _, slots in study.pool}):
            per_layer = study.find(of_layer[slots], "lru") if slots in of_layer else None
            found = (study.pool["lru", slots], study.pool["least_stale", slots], per_layer)
            rates = ("" if one is None else f"{one.value('hit_rate'):.1%}" for one in found)
            rows.append((study.name, f"{slots:,}", f"{slots / cycle:.2f}", *rates))
    return "## The cliff of one pool for all layers\n\nHit rate per request.\n\n" + markdown_table(head, rows)


def _all_policies(study: Study) -> str:
    head = [
        "policy",
        *(f"{study.slots[share]} slots ({share:.0%})" for share in SHARES),
        "of these uploads",
        "hit rate per request",
    ]
    names = [one.policy for one in study.online(0.1)]
    names += [one.policy for one in study.scored[0.1] if one.is_oracle]
    rows = []
    for name in names:
        found = [study.find(share, name) for share in SHARES]
        ones = [one for one in found if one is not None]
        label = f"{name} (oracle)" if ones[0].is_oracle else name
        uploads = ", ".join(f"{one.value('uploads'):.2f}" for one in ones)
        rates = ", ".join(f"{one.value('hit_rate'):.1%}" for one in ones)
        rows.append([label, *(_interval(study.bootstrap.interval(one, "reads")) for one in ones), uploads, rates])
    return f"## Every policy: {study.name}\n\nReads per layer-step. {_about(study)}.\n\n" + markdown_table(head, rows)
