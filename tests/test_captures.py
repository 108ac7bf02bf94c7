"""The captures that ship: whole, of the shipped weights, large enough, and the plan made on them."""

import hashlib

import numpy as np
import pytest

import moelab
from moelab.domain.trace import NO_TOKEN_ID, Phase
from moelab.engine.loader import open_model

NANO = moelab.shipped("nano/model").parent


@pytest.fixture(scope="module", params=["capture", "capture_batch8"])
def capture(request):
    return moelab.open_trace(NANO / request.param).load()


def test_checksums():
    lines = (NANO / "SHA256SUMS").read_text().split("\n")
    sums = dict(reversed(line.split("  ", 1)) for line in lines if line)
    for name, digest in sums.items():
        assert hashlib.sha256((NANO / name).read_bytes()).hexdigest() == digest, name
    shipped = {p.relative_to(NANO).as_posix() for p in NANO.glob("capture*/*")} | {"plan.json"}
    assert shipped <= set(sums)


def test_size_and_content(capture):
    header, tokens = capture.header, capture.tokens
    decode = tokens.phase == Phase.DECODE
    assert decode.sum() >= 20_000
    assert (~decode).sum() > 10_000
    assert len(np.unique(tokens.request)) >= 100
    assert len(header.domains) >= 8
    assert set(np.unique(tokens.domain)) == set(range(len(header.domains)))
    assert not header.synthetic
    assert header.licence == "CC0-1.0"
    assert (tokens.token_id == NO_TOKEN_ID).all(), "no text is stored"


def test_batches_are_batches(capture):
    decode = capture.phase(Phase.DECODE)
    _, sizes = np.unique(decode.tokens.step, return_counts=True)
    together = '"batch_size": 8' in capture.header.provenance
    assert sizes.max() == (8 if together else 1)


def test_recorded_from_the_shipped_weights(capture):
    opened = open_model(NANO / "model")
    names = [opened.names.spell(f"model.layers.{la}.mlp.gate.weight") for la in opened.spec.model_layer_of_layer]
    assert opened.checkpoint.fingerprint(names) in capture.header.provenance
    assert capture.header.model_fingerprint == opened.spec.fingerprint
    opened.checkpoint.close()


def test_plan_was_made_on_the_capture():
    trace = moelab.open_trace(NANO / "capture").load()
    plan = moelab.Plan.load(NANO / "plan.json")
    assert trace.has_fingerprint(plan.fingerprints["trace"])  # of version 1
    again = moelab.PLANNERS["frequency"](trace, slots_per_layer=12, phase="decode")
    assert again.placements == plan.placements
    held_out = trace.requests(plan.planner["held_out_requests"])
    scored = moelab.simulate(held_out, plan, phase="decode", progress=False)
    assert scored.hit_rate_per_request == pytest.approx(plan.prediction["hit_rate_per_request"])
