"""Commands about the paper: tables, figures."""

import argparse
from pathlib import Path

from vitgraft.commands._common import (
    CommandError,
    add_command,
    add_format,
    check_output,
    print_as,
)
from vitgraft.report.terminal import Progress, console

__all__ = ["add_commands"]


def add_commands(commands) -> None:
    """Adds these commands to the parser's sub-commands."""
    _add_tables(commands)
    _add_figures(commands)


def _add_tables(commands) -> None:
    parser = add_command(
        commands,
        "tables",
        _tables,
        "the paper's tables beside our counts",
        "Prints the paper's tables with columns paper, here and difference. Parameters and MAC are counted\n"
        "now; accuracies come from the files in the results folder, and are 'not measured' without one.",
        ["vitgraft tables", "vitgraft tables --table 2 5", "vitgraft tables --output tables.md"],
    )
    parser.add_argument("--table", nargs="+", metavar="N", help="1, 2, 5, 6, 7 or A (default: all)")
    add_format(parser)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: ./results")


def _add_figures(commands) -> None:
    parser = add_command(
        commands,
        "figures",
        _figures,
        "the paper's figures 1 (b) and 2 (a), drawn and measured",
        "tradeoff: accuracy against MAC as printed, arrows where grafts were added, and images/s measured on this\n"
        "machine (minutes) or read from a file of vitgraft bench. reach: the effective receptive field of a centre\n"
        "token in Swin-T and DeiT-T with and without grafts, with random weights on real photos. PNG and SVG each.",
        [
            "vitgraft figures",
            "vitgraft figures tradeoff --bench results/bench_tables.json --out docs/pictures",
            "vitgraft figures reach --photos DIR --seeds 0 1 2",
        ],
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="tradeoff, reach (default: both)")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: ./figures")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--bench", type=Path, metavar="FILE.json", help="speeds that vitgraft bench --output wrote")
    speed.add_argument("--no-speed", action="store_true", help="leave the speed panel out")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photos for reach (default: scikit-learn's two)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="start values (default: 0)")


def _tables(args: argparse.Namespace) -> int:
    check_output(args.output)
    from vitgraft.report import tables

    wanted = [number.upper() for number in args.table or tables.TABLES]
    unknown = [number for number in wanted if number not in tables.TABLES]
    if unknown:
        raise CommandError(f"--table {' '.join(unknown)}: there are {', '.join(tables.TABLES)}")
    try:
        top1 = tables.read_top1(args.results)
    except ValueError as error:
        raise CommandError(str(error)) from error
    with Progress(sum(len(tables.TABLES[number].rows) for number in wanted)) as step:

        def rows(items):
            for row in items:
                step(row.label)
                yield row

        counted = {number: tables.count_table(tables.TABLES[number], top1, rows) for number in wanted}
    print_as(
        args,
        lambda out: tables.print_terminal(counted, out),
        lambda: tables.to_markdown(counted),
        lambda: tables.to_json(counted),
    )
    return 0


def _figures(args: argparse.Namespace) -> int:
    out = console()
    from vitgraft.report import figures

    wanted = args.figures or list(figures.FIGURES)
    unknown = [name for name in wanted if name not in figures.FIGURES]
    if unknown:
        raise CommandError(f"unknown figure {', '.join(unknown)}; there are {', '.join(figures.FIGURES)}")
    if args.photos and not args.photos.is_dir():
        raise CommandError(f"--photos {args.photos}: no such folder")
    measure = "tradeoff" in wanted and not args.no_speed and args.bench is None
    total = (figures.speed_reports() if measure else 0) + len(figures.SYSTEMS) * len(args.seeds) * ("reach" in wanted)
    try:
        record = figures.read_speeds(args.bench) if args.bench else None
        with Progress(total) as step:
            if measure:
                record = figures.measure_speeds(step)
            written = figures.make_figures(args.out, wanted, record, args.photos, args.seeds, step)
    except ValueError as error:
        raise CommandError(str(error)) from error
    for path in written:
        out.print(str(path), highlight=False, soft_wrap=True)
    return 0
