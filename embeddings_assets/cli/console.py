"""What the command line shows: progress bars, tables, errors."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from embeddings_assets.catalog import get_dataset
from embeddings_assets.errors import EmbeddingsError, StoreError

if TYPE_CHECKING:
    from embeddings_assets.cli.doctor import Line
    from embeddings_assets.datasets.report import PrepareReport
    from embeddings_assets.extraction.report import Progress as Callback
    from embeddings_assets.graph.demo import DemoRow
    from embeddings_assets.pipeline import Outcome, ProgressFor
    from embeddings_assets.quality.duplicates import DuplicateGroup

_STOPPED = 130  # what a shell reports for a command that SIGINT ended
_COLOURS = {"ready": "green", "partial": "yellow", "missing": "yellow", "wrong": "red", "note": "default"}
_WIDE = 160  # width of output that goes to a file, where no line should be cut

out = Console(width=None if sys.stdout.isatty() else _WIDE, soft_wrap=False)
err = Console(stderr=True, width=None if sys.stderr.isatty() else _WIDE)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C inside ends the command with a word on how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("Stopped. What is finished is kept: the same command goes on from there.")
        raise typer.Exit(_STOPPED) from None


def note(text: str) -> None:
    """Say something beside the results."""
    err.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)


def show_error(error: EmbeddingsError) -> None:
    err.print(f"[bold red]Error[/]: {escape(error.problem)}", soft_wrap=True)
    if error.remedy:
        err.print(f"  [bold]To mend[/]: {escape(error.remedy)}", soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        err.print(f"[red]Also[/]: {escape(note)}", soft_wrap=True)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print a table; `right` names the columns of numbers."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        result.add_row(*row)
    out.print(result)


@contextlib.contextmanager
def progress_bars() -> Iterator["ProgressFor"]:
    """Progress bars on a terminal, one per split; nothing where the output is a file or a pipe."""
    with _bars() as bars:

        def callback_for(model: str, dataset: str, split: str) -> "Callback":
            task = bars.add_task(escape(f"{model} / {dataset} / {split}"), total=None)

            def advance(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            return advance

        yield callback_for


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator["Callback"]:
    """One progress bar."""
    with _bars() as bars:
        task = bars.add_task(escape(title), total=None)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield advance


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def show_manifests(reports: Sequence["PrepareReport"], refused: Sequence[str], processed: Path) -> None:
    """What `prepare` did: a row per split, and one for each dataset that was refused."""
    rows: list[tuple[str, ...]] = []
    for report in reports:
        ledger = ", ".join(f"{count:,} {reason}" for reason, count in report.ledger.items()) or "-"
        status = "written" if report.changed else "unchanged"
        counts = f"{report.rows:,}", f"{report.classes:,}", _official(report, reports)
        rows.append((report.dataset, report.split, *counts, ledger, status))
    rows += [(name, "all", "", "", "", "", "[red]refused[/]") for name in refused]
    columns = ("Dataset", "Split", "Images", "Classes", "Official", "Not usable", "Status")
    table(f"Manifests in {processed}", columns, rows, right=("Images", "Classes", "Official"))
    changes = dict.fromkeys(
        (report.dataset, change) for report in reports for change in report.options_changed
    )
    for dataset, change in changes:
        out.print(f"[yellow]{escape(dataset)}: {escape(change)}[/]", soft_wrap=True)


def _official(report: "PrepareReport", reports: Sequence["PrepareReport"]) -> str:
    """The official count; yellow where the lists name another number of images."""
    if report.official is None:
        return "-"
    split_in_two = report.split == "train" and not get_dataset(report.dataset).has_official_validation
    parts = ("train", "validation") if split_in_two else (report.split,)
    listed = sum(
        other.listed for other in reports if other.dataset == report.dataset and other.split in parts
    )
    text = f"{report.official:,}{' with validation' if split_in_two else ''}"
    return text if listed == report.official else f"[yellow]{text}, listed {listed:,}[/]"


def show_duplicates(groups: Sequence["DuplicateGroup"]) -> None:
    """How many identical images there are, if any, and how to see them."""
    if not groups:
        return
    across = sum(group.across_splits for group in groups)
    datasets = sum(group.across_datasets for group in groups)
    labels = sum(group.labels_differ for group in groups)
    out.print(
        f"{len(groups):,} groups of identical images: {across:,} across splits, {datasets:,} across "
        f"datasets, {labels:,} with different labels. See them: embeddings-assets datasets duplicates",
        soft_wrap=True,
    )


def show_not_compared(errors: Iterable[StoreError]) -> None:
    """Which manifests were left out of a search for identical images."""
    for error in errors:
        note(f"not compared: {error}")


def show_report(lines: Iterable["Line"]) -> None:
    """The doctor's lines under their topics; below each, its next command."""
    topic = None
    for line in lines:
        if line.topic != topic:
            topic = line.topic
            out.print(f"[bold]{escape(topic)}[/]")
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=9)
        grid.add_column(width=18)
        grid.add_column(overflow="fold")
        grid.add_row(f"  [{_COLOURS[line.state]}]{line.state}[/]", escape(line.item), escape(line.found))
        if line.remedy:
            grid.add_row("", "", f"[cyan]> {escape(line.remedy)}[/]")
        out.print(grid)


def show_outcomes(outcomes: Sequence["Outcome"], embeddings: Path) -> None:
    """The closing summary of an extraction: one row per split, then every error in full."""
    rows = []
    for outcome in outcomes:
        names = (outcome.model, outcome.dataset, outcome.split)
        report = outcome.report
        if report is None:
            rows.append((*names, "", "", "[red]failed[/]", "", "", "", ""))
            continue
        rows.append(
            (
                *names,
                f"{report.rows:,}",
                f"{sum(report.ledger.values()):,}",
                report.status if report.status == "unchanged" else f"[green]{report.status}[/]",
                f"{report.images_per_second:.1f}" if report.computed else "-",
                f"{report.bottleneck} {report.stage_shares[report.bottleneck]:.0%}"
                if report.computed
                else "-",
                f"{report.bytes / report.raw_bytes:.2f}",
                weights_label(report.footer.get("trained")),
            )
        )
    columns = (
        "Model",
        "Dataset",
        "Split",
        "Rows",
        "Bad",
        "Status",
        "Images/s",
        "Limited by",
        "Size / raw",
        "Weights",
    )
    table(f"Embeddings in {embeddings}", columns, rows, right=("Rows", "Bad", "Images/s", "Size / raw"))
    for outcome in outcomes:
        fidelity = outcome.report.fidelity if outcome.report else None
        if fidelity:
            out.print(
                f"{outcome.model} / {outcome.dataset} / {outcome.split}: cosine to the exact profile "
                f"{fidelity.minimum:.5f} at least, {fidelity.mean:.5f} on average, of {fidelity.sample} rows"
            )
    failed: dict[str, tuple[EmbeddingsError, list[str]]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            name = f"{outcome.model} / {outcome.dataset} / {outcome.split}"
            failed.setdefault(str(outcome.error), (outcome.error, []))[1].append(name)
    for error, splits in failed.values():
        err.print(f"[bold]{escape(', '.join(splits))}[/]", soft_wrap=True)
        show_error(error)


def show_demo(rows: Sequence["DemoRow"]) -> None:
    """The demo's closing table: a row per dataset and split, a column per asset, 90 cells in all."""
    assets = list(dict.fromkeys(row.asset for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        colour = "red" if row.failed else "green"
        warned = f" [yellow]{row.warned} warn[/]" if row.warned else ""
        cell = f"{row.rows} rows [{colour}]{row.passed} ok[/]{warned}"
        cells.setdefault((row.dataset, row.split), {})[row.asset] = cell
    columns = ["Dataset", "Split", *(asset.removeprefix("embeddings/") for asset in assets)]
    lines = [[*names, *(found[asset] for asset in assets)] for names, found in cells.items()]
    table("Materialised partitions: rows, checks passed, warnings", columns, lines)
    processed = sum(row.asset == assets[0] for row in rows)
    passed, warned, failed = (
        sum(getattr(row, name) for row in rows) for name in ("passed", "warned", "failed")
    )
    out.print(f"{len(rows) - processed} embedding splits and {processed} processed ones.")
    out.print(f"{passed} checks passed, {failed} failed, {warned} warnings.")


def weights_label(trained: object) -> str:
    """How a footer's `trained` reads."""
    if trained is True:
        return "published"
    return "[yellow]untrained[/]" if trained is False else "local file"
