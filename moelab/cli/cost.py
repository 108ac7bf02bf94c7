"""``moelab cost``: a price per token against a machine: break-even, utilisation, sensitivity."""

from __future__ import annotations

import argparse

from moelab.cli.output import print_json, print_rows, print_table
from moelab.cli.size import add_sizing, size_all

HELP = "an API's prices against a machine of one's own: break-even, utilisation, sensitivity; every price is an input"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="*", help="take the rate of this model on --machine")
    parser.add_argument(
        "--tok-per-s", type=float, metavar="R", help="instead: the rate of output, all streams together"
    )
    parser.add_argument(
        "--prefill-tok-per-s",
        type=float,
        metavar="R",
        help="rate of uncached input (default: predicted for MODEL, else free)",
    )  # fmt: skip
    api = parser.add_argument_group("prices of the API, per million tokens")
    api.add_argument("--input-price", type=float, required=True, metavar="P")
    api.add_argument("--cached-price", type=float, metavar="P", help="of cached input (default: as --input-price)")
    api.add_argument("--output-price", type=float, required=True, metavar="P")
    api.add_argument("--price-date", required=True, metavar="DATE", help="when these prices were read")
    api.add_argument("--price-source", required=True, metavar="TEXT", help="where")
    api.add_argument("--currency", default="USD", metavar="C", help="of every price (default: USD)")
    own = parser.add_argument_group("cost of the machine")
    own.add_argument("--per-month", type=float, metavar="P", help="rent")
    own.add_argument("--purchase", type=float, metavar="P", help="or its purchase, with --lifetime-months")
    own.add_argument("--lifetime-months", type=float, metavar="N")
    own.add_argument("--power-watts", type=float, default=0.0, metavar="W", help="while busy")
    own.add_argument("--idle-watts", type=float, default=0.0, metavar="W")
    own.add_argument("--kwh-price", type=float, default=0.0, metavar="P")
    own.add_argument("--other-per-month", type=float, default=0.0, metavar="P", help="rack, network")
    own.add_argument("--machine-date", required=True, metavar="DATE", help="when these were read")
    own.add_argument("--machine-source", required=True, metavar="TEXT", help="where")
    mix = parser.add_argument_group("traffic")
    mix.add_argument("--input-share", type=float, default=0.75, metavar="S", help="of all tokens (default: 0.75)")
    mix.add_argument("--cached-share", type=float, default=0.0, metavar="S", help="of the input (default: 0)")
    mix.add_argument("--tokens-per-month", type=float, metavar="N", help="also compare at this volume")
    add_sizing(parser)


def run(options: argparse.Namespace) -> None:
    from moelab.sizing.cost import CostComparison
    from moelab.sizing.prices import MachineCost, TokenPrices, Traffic

    rate, interval, predicted_prefill, rates_from = _rate(options)
    one = CostComparison(
        prices=TokenPrices(
            options.input_price, options.output_price, options.price_date, options.price_source,
            cached_per_million=options.cached_price, currency=options.currency,
        ),
        machine=MachineCost(
            options.machine_date, options.machine_source, per_month=options.per_month, purchase=options.purchase,
            lifetime_months=options.lifetime_months, power_watts=options.power_watts, idle_watts=options.idle_watts,
            price_per_kwh=options.kwh_price, other_per_month=options.other_per_month,
        ),
        traffic=Traffic(options.input_share, options.cached_share),
        tok_per_s=rate,
        prefill_tok_per_s=options.prefill_tok_per_s or predicted_prefill,
        tok_per_s_interval=interval,
        rates_from=rates_from,
    )  # fmt: skip
    fields = one.to_dict(options.tokens_per_month)
    if options.json:
        print_json(
            fields
            | {
                "sensitivity": one.sensitivity().to_dict("records"),
                "curve": one.curve().to_dict("records"),
            }
        )
        return
    print_rows("API beside a machine", {name.replace("_", " "): value for name, value in fields.items()})
    print_table("Break-even, one input changed at a time", one.sensitivity())
    print_table("Break-even curve", one.curve().iloc[::4])


def _rate(options: argparse.Namespace) -> tuple[float, tuple[float, float] | None, float | None, str]:
    """Output tokens a second, their interval, input tokens a second, and from where: given, or predicted."""
    if (options.tok_per_s is None) == (not options.model):
        raise ValueError("expected either MODEL with --machine or --tok-per-s, got both or neither")
    if options.tok_per_s is not None:
        return options.tok_per_s, None, None, "given"
    sized = size_all(options)
    if len(sized) != 1:
        raise ValueError(f"got {len(sized)} models and machines, expected one of each")
    predicted = sized[0].prediction
    if predicted is None:
        why = "; ".join(sized[0].places.lacks) or "everything lies on GPUs, where there is a ceiling only"
        raise ValueError(f"no rate is predicted for {options.model[0]} on {sized[0].machine.name}: {why}; --tok-per-s")
    prefill = sized[0].prefill
    told = (
        f"predicted, leave-one-out errors, median and mean: output {predicted.median_error:.1%}, "
        f"{predicted.mean_error:.1%}; prefill {prefill.median_error:.1%}, {prefill.mean_error:.1%}"
    )
    return predicted.tok_per_s, predicted.interval_tok_per_s, prefill.tok_per_s, told
