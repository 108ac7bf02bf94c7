"""prompts.jsonl is read whole or refused with its line."""

import json

import pytest

from moelab.engine.prompts import Prompt, domains_of, read_prompts

GOOD = {"request": 3, "domain": "code", "prompt": "def f(", "max_new_tokens": 8}


def write(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_numbers_names_texts_and_token_ids(tmp_path):
    path = write(tmp_path, GOOD, "", GOOD | {"request": 9, "prompt": [1, 2], "domain": None, "note": "ignored"})
    assert read_prompts(path) == [Prompt(3, "def f(", 8, "code", "3"), Prompt(9, (1, 2), 8, None, "9")]
    path = write(tmp_path, GOOD | {"request": "b"}, GOOD | {"request": "a", "domain": "text", "prompt": "\u2028é"})
    prompts = read_prompts(path)
    assert [(p.request, p.name) for p in prompts] == [(0, "b"), (1, "a")]
    assert domains_of(prompts) == ("code", "text")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "JSON object"),
        ("[1]", "got list"),
        (GOOD | {"request": -1}, "request"),
        (GOOD | {"request": True}, "request"),
        (GOOD | {"request": 2**31}, "request"),
        (GOOD | {"request": "name"}, "request as a number as before"),
        (GOOD | {"request": 3}, "already on line 1"),
        (GOOD | {"request": 4, "domain": 7}, "domain"),
        (GOOD | {"request": 4, "prompt": ""}, "prompt"),
        (GOOD | {"request": 4, "prompt": [1, -2]}, "prompt"),
        (GOOD | {"request": 4, "max_new_tokens": 0}, "max_new_tokens"),
        ({"request": 4, "domain": "code", "prompt": "x", "max_new_token": 5}, "none called max_new_tokens"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 3") as caught:
        read_prompts(write(tmp_path, GOOD, "", row))
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="at least one prompt"):
        read_prompts(write(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")
