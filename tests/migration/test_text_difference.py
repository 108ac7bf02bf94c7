"""Texts beside each other by hand, and margins beside those of plain forward passes."""

from __future__ import annotations

import pytest
import torch

import moelab
from moelab.engine.prompts import Prompt
from moelab.engine.watched import watched_stream
from moelab.migration.text_difference import TextDifference


def text(tokens, margins):
    return list(zip(tokens, margins, strict=True))


def test_by_hand():
    without = [text([1, 2, 3], [0.5, 0.1, 0.9]), text([4, 5, 6], [1, 1, 1]), text([7, 8, 9], [0.2, 0.01, 4])]
    moved = [text([1, 9, 3], [0.5, 0.2, 0.9]), text([4, 5, 6], [1, 1, 1]), text([7, 3, 3], [0.2, 0.02, 1])]
    difference = TextDifference.of(without, moved, 0.2)
    assert difference.first == ((0, 1, 0.1), (2, 1, 0.01))  # what comes after the first says nothing
    assert (difference.num_texts, difference.num_tokens, difference.num_different_tokens) == (3, 9, 3)
    assert difference.largest_margin == 0.1
    assert difference.is_allowed
    assert not TextDifference.of(without, moved, 0.1).is_allowed
    assert not TextDifference.of(without, moved, 0.0).is_allowed
    summary = difference.summary()
    assert summary["texts_equal"] == 1
    assert summary["first_differences"][1] == {"text": 2, "token": 1, "top2_margin": 0.01}
    same = TextDifference.of(without, without, 0.0)
    assert same.is_allowed
    assert same.largest_margin is None
    assert same.summary()["texts_equal"] == 3


def test_margins_are_those_of_the_logits():
    """Each token is the likeliest, and its margin that of a forward pass of everything before it."""
    with moelab.load(moelab.shipped("nano/model")) as engine:
        prompt = (5, 80, 81, 82)
        watched = list(watched_stream(engine, Prompt(0, prompt, 6)))
        assert tuple(token for token, _ in watched) == engine.generate(list(prompt), 6, stop=()).token_ids
        tokens = list(prompt)
        for token, margin in watched:
            logits = engine.forward(tokens)[-1]
            top = torch.topk(logits, 2).values
            assert margin == pytest.approx(float(top[0] - top[1]), abs=0.1)  # decode rounds otherwise than prefill
            tokens.append(token)
