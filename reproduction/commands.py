"""The commands of `python -m reproduction`: tables, figures, results, zoo, study."""

import argparse
from pathlib import Path

from vitgraft.atomic import check_writable
from vitgraft.commands.common import add_command, add_format, check_output, check_report, positive, print_as
from vitgraft.errors import CommandError
from vitgraft.terminal import Progress, console, print_table, write, write_json

__all__ = ["COMMANDS"]

BENCH_FILE = Path("results/bench_tables.json")
"""Where images/s of the tables are looked for."""


def _add_tables(commands) -> None:
    parser = add_command(
        commands,
        "tables",
        _tables,
        "the paper's tables beside our counts and measurements",
        "Prints the paper's tables with columns paper, here and difference. Parameters and MAC are counted\n"
        "now; images/s are read from a file, or measured with --speed (all tables: about half an hour on two CPU\n"
        "cores); scores come from the files in the results folder. What was not measured is marked so.",
        [
            "python -m reproduction tables",
            "python -m reproduction tables --table 2 5",
            "python -m reproduction tables --output tables.md",
            "python -m reproduction tables --speed --bench results/bench_tables.json --output docs/tables.md",
        ],
    )
    parser.add_argument("--table", nargs="+", metavar="N", help="1 to 8 or A (default: all)")
    add_format(parser)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: ./results")
    _add_speed(parser)


def _add_speed(parser) -> None:
    add = parser.add_argument
    add("--speed", action="store_true", help="measure images/s now, the models in turns")
    add(
        "--bench",
        type=Path,
        metavar="FILE.json",
        help=f"images/s: read from FILE, or written to it with --speed (default: {BENCH_FILE} is read if it is there)",
    )
    add("--device", default="cpu", help="of --speed: cpu, cuda, cuda:1 (default: cpu)")
    add("--threads", type=positive, metavar="N", help="of --speed: CPU threads")


def _add_figures(commands) -> None:
    parser = add_command(
        commands,
        "figures",
        _figures,
        "the paper's figures 1 (b) and 2 (a), drawn and measured",
        "tradeoff: accuracy against MAC as printed, arrows where grafts were added, and images/s read from a file\n"
        "or measured with --speed. receptive_field: the effective receptive field of a center token in Swin-T and\n"
        "DeiT-T with and without grafts, with random weights on real photos. PNG and SVG each, and a page with the\n"
        "numbers.",
        [
            "python -m reproduction figures",
            "python -m reproduction figures tradeoff --bench results/bench_tables.json --out docs/pictures",
            "python -m reproduction figures receptive_field --photos DIR --seeds 0 1 2",
        ],
    )
    add = parser.add_argument
    add("figures", nargs="*", metavar="FIGURE", help="tradeoff, receptive_field (default: both)")
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: ./figures")
    _add_speed(parser)
    add("--photos", type=Path, metavar="DIR", help="of receptive_field (default: scikit-learn's two)")
    add("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of receptive_field: weights (default: 0)")


def _add_results(commands) -> None:
    parser = add_command(
        commands,
        "results",
        _results,
        "finished runs side by side, seeds as mean and spread",
        "Reads the folders of runs that vitgraft fit made and prints their last evaluations; runs that differ in\n"
        "their seed alone become one row. --output writes a JSON file for each run, for the results folder.",
        [
            "python -m reproduction results runs/*",
            "python -m reproduction results runs/graft_* --dataset cifar10 --output results",
        ],
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    add("--dataset", metavar="NAME", help="name of the data (default: its folder's)")
    add("--format", choices=("terminal", "markdown"), default="terminal", help="default: terminal")
    add("--output", type=Path, metavar="DIR", help="write RUN.json there for each run")


def _add_zoo(commands) -> None:
    parser = add_command(
        commands,
        "zoo",
        _zoo,
        "docs/zoo.md: the models of models/zoo/ beside their authors' code",
        "Compares the models with the conformance vectors of their authors' code (in ../shared or $VITGRAFT_SHARED),\n"
        "counts them, and writes docs/zoo.md. Their speed is read from results/zoo_speed.json.",
        ["python -m reproduction zoo", "python -m reproduction zoo --speed"],
    )
    parser.add_argument("--speed", action="store_true", help="measure the speed and write it there (10 minutes)")


def _tables(args: argparse.Namespace) -> int:
    check_report(args)
    from reproduction import speed, tables
    from reproduction.scores import read_scores

    wanted = list(dict.fromkeys(number.upper() for number in args.table or tables.TABLES))
    unknown = [number for number in wanted if number not in tables.TABLES]
    if unknown:
        raise CommandError(f"--table {' '.join(unknown)}: there are {', '.join(tables.TABLES)}")
    if not args.results.is_dir() and args.results != Path("results"):
        raise CommandError(f"--results {args.results}: no such folder")
    scores = read_scores(args.results)
    _check_speed(args)
    rows = sum(len(tables.TABLES[number].rows) for number in wanted)
    with Progress(rows + (speed.speed_reports(wanted) if args.speed else 0)) as step:

        def with_progress(items):
            for row in items:
                step(row.label)
                yield row

        record = _bench_record(args, step, wanted)
        speeds, where = speed.speeds_of(record) if record else ({}, "")
        measured = tables.Measured(scores, speeds, where)
        counted = {number: tables.count_table(tables.TABLES[number], measured, with_progress) for number in wanted}
    print_as(
        args,
        lambda out: tables.print_terminal(counted, out, where),
        lambda: tables.to_markdown(counted, where),
        lambda: tables.to_json(counted, where),
    )
    return 0


def _check_speed(args: argparse.Namespace) -> None:
    """Checks what --speed needs before minutes are spent."""
    from reproduction import speed

    if not args.speed:
        if args.bench:
            speed.read_speeds(args.bench)
        return
    import torch

    from vitgraft.tools.bench import BenchConfig

    check_output(args.bench)
    BenchConfig(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)


def _bench_record(args: argparse.Namespace, step, tables) -> dict | None:
    """The images/s, measured now or read; None where there are none."""
    from reproduction import speed

    if not args.speed:
        return speed.read_speeds(args.bench or BENCH_FILE) if args.bench or BENCH_FILE.exists() else None
    record = speed.measure_speeds(step, tables, args.device)
    if args.bench:
        write_json(args.bench, record)
    return record


def _figures(args: argparse.Namespace) -> int:
    out = console()
    from reproduction import figures, speed

    wanted = args.figures or list(figures.FIGURES)
    unknown = [name for name in wanted if name not in figures.FIGURES]
    if unknown:
        raise CommandError(f"unknown figure {', '.join(unknown)}; there are {', '.join(figures.FIGURES)}")
    if args.photos and not args.photos.is_dir():
        raise CommandError(f"--photos {args.photos}: no such folder")
    _check_speed(args)
    check_writable(args.out)
    total = speed.speed_reports(figures.TRADEOFF_TABLES) if args.speed else 0
    total += len(figures.SYSTEMS) * len(args.seeds) * ("receptive_field" in wanted)
    with Progress(total) as step:
        record = _bench_record(args, step, figures.TRADEOFF_TABLES) if "tradeoff" in wanted else None
        written = figures.make_figures(args.out, wanted, record, args.photos, args.seeds, step)
    for path in written:
        out.print(str(path), highlight=False, soft_wrap=True)
    return 0


def _results(args: argparse.Namespace) -> int:
    out = console()
    from reproduction import results

    records = results.read_records(args.runs, args.dataset)
    if args.output:
        check_writable(args.output)
    summaries = results.summarize(records)
    if args.format == "markdown":
        write(None, results.to_markdown(summaries))
    else:
        results.print_terminal(summaries, out)
    if args.output:
        for folder, record in zip(args.runs, records, strict=True):
            write_json(args.output / f"{folder.name}.json", record)
    return 0


def _zoo(args: argparse.Namespace) -> int:
    from reproduction import zoo_page

    with Progress(zoo_page.total_reports(args.speed)) as step:
        print(zoo_page.write_page(args.speed, step))
    return 0


def _add_study(commands) -> None:
    parser = add_command(
        commands,
        "study",
        _study,
        "the study of the paper's claims: runs, page, state",
        "run: makes the runs of reproduction/study/grid.yaml that have no record in results/study, in the order of\n"
        "the grid; unfinished ones are resumed. page: writes docs/study.md and its figures from the records.\n"
        "status: what is done and what is left. Datasets are in $VITGRAFT_SHARED, or in ../shared.",
        [
            "python -m reproduction study run --budget 60",
            "python -m reproduction study run --jobs 2 --block R1 --configurations windows grafted",
            "python -m reproduction study run --jobs 8 --device cuda",
            "python -m reproduction study page",
        ],
    )
    add = parser.add_argument
    add("action", choices=("run", "page", "status"))
    add("--jobs", type=positive, default=1, metavar="N", help="of run: processes of one thread each (default: 1)")
    add("--budget", type=positive, metavar="MINUTES", help="of run: stop after so many minutes (default: never)")
    add("--block", metavar="BLOCK", help="of run: R0 (learning rates), R1 ... alone (default: all)")
    add(
        "--configurations", nargs="+", default=[], metavar="NAME", help="of run: some of the block alone (default: all)"
    )
    add("--device", default="cpu", help="of run: cpu, cuda, cuda:1 (default: cpu)")


def _study(args: argparse.Namespace) -> int:
    from reproduction.study import page, run
    from reproduction.study.grid import load_grid

    if args.action == "run":
        return run.run_study(args.jobs, args.block, args.configurations, args.budget, args.device)
    if args.action == "page":
        for path in page.write_page():
            print(path)
    else:
        print_table(console(), run.STATUS_HEADINGS, run.status_rows(load_grid()), left=(0, 1))
    return 0


COMMANDS = (_add_tables, _add_figures, _add_results, _add_zoo, _add_study)
"""What adds each command to the sub-commands of a parser, in the order of the help."""
