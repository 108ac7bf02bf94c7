"""Claims: the rule by hand, and the articles' verdicts against those of the facts, written down independently."""

import pytest

from moelab.sizing.article_claims import ARTICLE_CLAIMS, price_claims
from moelab.sizing.claims import Claim, judge, judge_all
from moelab.sizing.prices import MachineCost, TokenPrices

# Facts section 3, by a word of the claim: does it hold? (Ambiguous ones of the facts are not listed.)
FACTS = {
    "roughly a trillion": True, "few tens of billions": True, "0.6 to 1.7 TB/s": True, "about 500 GB": False,
    "full precision does not fit": False, "Gen 6 roughly doubles": False, "almost linearly": False,
    "one socket is too slow": False, "current generation": True, "newer generation": True, "two to three times": False,
    "usable interactive": True, "UD-Q2_K_XL is 340": True, "350 GB of RAM": True, "UD-Q4_K_XL is 585": True,
    "UD-Q8_K_XL is 595": True, "Q4 doubles": False, "bf16 takes": True, "32 billion active": True, "384 experts": True,
    "eight active parameters": False, "complete weight matrix": False, "36% fewer": False,
    "384 GB of DDR5": False, "shuttled over PCIe": False, "950 dollars": False, "0.95 dollars": True,
    "50 million tokens": False, "768 GB of RAM": True, "562.5": False, "FP16 is about": True, "1,024 GB": False,
    "45 GB/s": False, "96 GB/s": False, "300 GB/s": False, "1,008 GB/s": False, "0.08 GB": False,
    "hundreds of GB": False, "Mac Studio": False, "1.1 trillion": False, "616 GB": True, "80 layers": False,
    "hidden size 8,192": False, "8 key-value heads": False, "85.9": False, "772 GB": False, "114 GB": False,
    "right to about 10%": False, "192 GB of unified": False,
}  # fmt: skip
PRICES = TokenPrices(0.95, 4.0, "2026-08", "facts section 3", cached_per_million=0.16)
RENT = MachineCost("2026-11", "assumed", per_month=1000)
BOX = MachineCost("2026-11", "assumed", purchase=15000, lifetime_months=48)


def claim(stated, value, tolerance=0.1, **more) -> Claim:
    return Claim("t", "text", stated, "GB", lambda: value, "formula", tolerance=tolerance, **more)


@pytest.mark.parametrize(
    ("stated", "value", "words"),
    [
        (100, 105, "holds"),
        (100, 111, "wrong: 11% too low"),
        (100, 250, "wrong: 2.5 times too low"),
        (100, 50, "wrong: 2.0 times too high"),
        ((80, 100), (110, 120), "holds"),
        ((80, 100), (111, 120), "wrong: 11% too low"),
        ((80, 100), 40, "wrong: 2.0 times too high"),
        (100, 2000, "wrong: 20 times too low"),
        ((0, 10), 11, "holds"),
        (1, 0, "wrong"),
        ((3000, float("inf")), 9000, "holds"),
    ],
)
def test_the_rule_by_hand(stated, value, words):
    assert judge(claim(stated, value)).words == words


def test_a_prediction_never_simply_holds():
    assert judge(claim(7, (5, 10), is_prediction=True)).words == "within the interval"
    assert judge(claim(20, (5, 10), is_prediction=True)).words == "wrong: 2.0 times too high"
    with pytest.raises(ValueError, match="lower end first"):
        judge(claim(1, (3, 2)))


def test_verdicts_are_those_of_the_facts():
    claims = (*ARTICLE_CLAIMS, *price_claims(PRICES, RENT, BOX, "forge-moe-gen4"))
    for words, holds in FACTS.items():
        (found,) = [one for one in claims if words in one.text]
        assert judge(found).holds is holds, found.text


def test_recomputed_numbers_of_the_facts():
    by_text = {one.text: judge(one).recomputed for one in ARTICLE_CLAIMS}
    expected = {
        "about 500 GB at roughly 4 bits": (594, 0.001), "cache of 85.9 GB at 256K": (18.42, 0.001),
        "Q4 doubles the memory of Q2": (1.72, 0.003), "45 GB/s: 0.5 tok/s": (2.3, 0.02),
        "96 GB/s: 1.0 tok/s": (5.0, 0.03), "300 GB/s: 3.0 tok/s": (15.6, 0.03), "six H200": (5, 0),
        "weights are shuttled over PCIe as experts change": (1.7, 0.02),
        "throughput tracks bandwidth almost linearly: twice the sockets": (1.40, 0.01),
    }  # fmt: skip
    for text, (value, tolerance) in expected.items():
        assert by_text[text][0] == pytest.approx(value, rel=tolerance), text
    low, high = by_text["Gen 6 roughly doubles Gen 4"]
    assert 1.1 < low < 1.35 < high < 1.5  # the facts' fit of more points said 1.35


def test_every_article_is_answered_with_its_formula():
    frame = judge_all((*ARTICLE_CLAIMS, *price_claims(PRICES, RENT, BOX, "forge-moe-gen4")))
    assert set(frame["article"]) == {"0", "1", "2", "3", "4"}
    assert (frame["formula"] != "").all()
    assert frame["claim"].is_unique
    assert frame["verdict"].str.match(r"holds|wrong|within the interval").all()


def test_prices_decide_the_price_claims():
    cheap = TokenPrices(950.0, 4000.0, "2026-08", "a world a thousand times dearer")
    verdicts = {one.text: judge(one).holds for one in price_claims(cheap, RENT, BOX, "forge-moe-gen4")}
    assert verdicts["950 dollars per million input tokens"]
    assert verdicts["a fixed monthly node beats the per-token price once use is steady"]
    assert not verdicts["0.95 dollars per million input tokens"]
