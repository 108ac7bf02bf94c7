"""``moelab synth MODEL --out DIR``: synthetic routing at a model's shape; ``--compare TRACE``: how far it carries."""

from __future__ import annotations

import argparse

from moelab.cli.output import print_json, print_rows, print_table

HELP = "generate synthetic routing, labelled so, or compare the generator with a recorded trace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="kimi-k2.6", help="a model preset (default: kimi-k2.6)"
    )
    parser.add_argument("--out", metavar="DIR", help="the trace folder to write")
    parser.add_argument("--tokens", type=int, default=100_000, metavar="N", help="tokens in all (default: 100000)")
    parser.add_argument("--prefill", type=int, default=200, metavar="N", help="mean prompt tokens (default: 200)")
    parser.add_argument("--decode", type=int, default=300, metavar="N", help="mean answer tokens (default: 300)")
    parser.add_argument("--domains", type=int, default=8, metavar="D", help="domains, in even parts (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parameters", metavar="NAME", help="parameters fitted to this model (default: the model's own, if there are)"
    )
    parser.add_argument(
        "--compare", metavar="TRACE", help="instead: a table of real beside synthetic figures, held out"
    )
    parser.add_argument(
        "--fit", action="store_true", help="with --compare: fit parameters to half of the requests first"
    )
    parser.add_argument(
        "--evaluations", type=int, default=220, metavar="N", help="with --fit: traces to generate (default: 220)"
    )


def run(options: argparse.Namespace) -> None:
    if options.compare:
        _compare(options)
        return
    if options.fit:
        raise ValueError("got --fit without --compare: give the recorded trace to fit to")
    if not options.out:
        raise ValueError("got neither --out nor --compare: give the folder to write, or a trace to compare with")
    from moelab.domain.model import ModelSpec
    from moelab.store import open_trace
    from moelab.synthetic import RoutingShape, Workload, parameters_for, write

    shape = RoutingShape.of_model(ModelSpec.preset(options.model))
    parameters = parameters_for(options.model, options.parameters)
    workload = Workload.random(
        options.tokens, prefill=options.prefill, decode=options.decode, num_domains=options.domains, seed=options.seed
    )
    write(options.out, shape, parameters, workload, seed=options.seed, progress=not options.json)
    stored = open_trace(options.out)
    if options.json:
        print_json({"out": options.out, "parameters": parameters.source, **stored.summary()})
    else:
        print_rows(f"SYNTHETIC trace written to {options.out}", {**stored.summary(), "parameters": parameters.source})


def _compare(options: argparse.Namespace) -> None:
    from moelab.cli.trace_arguments import load_trace
    from moelab.realism import compare, fit
    from moelab.synthetic import parameters_for
    from moelab.synthetic.calibrated import START

    trace = load_trace(options.compare)
    if options.fit:
        parameters = fit(trace, START, max_evaluations=options.evaluations, progress=not options.json)
    else:
        parameters = parameters_for(trace.header.model, options.parameters)
    result = compare(trace, parameters, seed=options.seed, progress=not options.json)
    if options.json:
        print_json({**result.to_dict(), "fitted": parameters.model_dump()})
        return
    print_table(result.title, result.to_frame())
    print_rows("parameters", parameters.model_dump())
