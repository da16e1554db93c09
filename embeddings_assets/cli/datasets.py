"""`embeddings-assets prepare` and `datasets`: bring raw datasets in, and see what is in them."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embeddings_assets.errors import EmbeddingsError, StoreError

if TYPE_CHECKING:
    from embeddings_assets.io.download import Progress
    from embeddings_assets.quality.duplicates import DuplicateGroup

datasets_app = typer.Typer(help="Fetch raw datasets and look into them.", no_args_is_help=True)

DatasetOption = Annotated[str, typer.Option("--dataset", help="A dataset's name, or 'all'.")]


def prepare(
    dataset: DatasetOption,
    raw_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the official raw folders. "
            "Default: raw beside --data-dir if it is there, else data/raw."
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Accept a partial dataset: absent images go to the ledger."),
    ] = False,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Unusable images to tolerate.")] = 0.01,
    strict: Annotated[bool, typer.Option("--strict", help="Tolerate no unusable image.")] = False,
    crop: Annotated[
        str | None,
        typer.Option(
            help="Part of each image to use: none (all), banner (Aircraft), bounding_box. "
            "Default: as prepared before, else none."
        ),
    ] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(
            help="Share of train held out where a dataset publishes no validation split. "
            "Default: as prepared before, else 0.1."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the hold-out. Default: as prepared before, else 0.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image: finds damage inside files too.")
    ] = False,
    reread: Annotated[
        bool, typer.Option("--reread", help="Open every file again, also where size and time are as before.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Images looked at at once, 64 at most.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", "--data_dir", help="Where manifests go. Default: data/processed."),
    ] = None,
) -> None:
    """Read raw datasets, look at every image, and write one manifest per split."""
    from embeddings_assets.catalog import names_of
    from embeddings_assets.cli.console import (
        note,
        out,
        progress_bar,
        show_duplicates,
        show_error,
        show_manifests,
        show_not_compared,
        stoppable,
    )
    from embeddings_assets.datasets.options import chosen_options
    from embeddings_assets.datasets.processed import prepare_dataset
    from embeddings_assets.datasets.report import PrepareReport
    from embeddings_assets.quality.duplicates import find_duplicates
    from embeddings_assets.settings import Settings

    paths = Settings.from_environment().paths_with(data_dir, None)
    prepared: list[PrepareReport] = []
    refused: list[str] = []
    for name in names_of("dataset", dataset):
        try:
            rule = None
            if hold_out is not None or seed is not None:
                rule, _ = chosen_options(paths, name, share=hold_out, seed=seed)
            with stoppable(), progress_bar(name) as progress:
                reports = prepare_dataset(
                    name,
                    paths,
                    raw_dir=raw_dir,
                    allow_missing=allow_missing,
                    max_bad_share=max_bad_share,
                    strict=strict,
                    hold_out=rule,
                    crop=crop,
                    decode=decode,
                    reread=reread,
                    workers=workers,
                    progress=progress,
                    on_unused_hold_out=note if dataset == "all" else None,
                    on_wait=partial(note, f"{name}: waiting for another process that prepares it"),
                )
        except EmbeddingsError as error:
            refused.append(name)
            show_error(error)
            continue
        prepared += reports
    show_manifests(prepared, refused, paths.processed)
    if any(report.changed for report in prepared):
        new = list(dict.fromkeys(report.dataset for report in prepared))
        unreadable: dict[Path, StoreError] = {}
        show_duplicates(find_duplicates(paths, new, among=names_of("dataset", "all"), unreadable=unreadable))
        show_not_compared(unreadable.values())
    if refused:
        out.print("[red]Some datasets were refused; see the errors above.[/]")
        raise typer.Exit(1)


@datasets_app.command("list")
def datasets_list() -> None:
    """Show every dataset, its licence, and how it is got."""
    from embeddings_assets.catalog import DATASETS
    from embeddings_assets.cli.console import table

    rows = []
    for spec in DATASETS:
        size = sum(archive.bytes or 0 for archive in spec.archives)
        images = f"{sum(spec.counts.values()):,}"
        how = "fetch" if spec.can_be_fetched else "by hand, then fetch --archives"
        rows.append((spec.name, images, f"{size / 1e6:,.0f} MB" if size else "-", spec.licence, how))
    columns = ("Dataset", "Images", "Archives", "Licence", "How")
    table("Datasets", columns, rows, right=("Images", "Archives"))


@datasets_app.command("fetch")
def datasets_fetch(
    dataset: Annotated[str, typer.Argument(help="A dataset's name, or 'all'.")],
    archives: Annotated[
        Path | None,
        typer.Option("--archives", help="Folder with the archives, for datasets that are got by hand."),
    ] = None,
) -> None:
    """Download, check and unpack raw datasets; goes on where it was interrupted."""
    from embeddings_assets.catalog import DatasetSpec, names_of
    from embeddings_assets.cli.console import err, out, show_error, stoppable
    from embeddings_assets.datasets.fetch import fetch_dataset
    from embeddings_assets.settings import Settings

    def show_terms(spec: DatasetSpec) -> None:
        err.print(f"{spec.name}. Licence: {spec.licence}. {spec.homepage}", markup=False, soft_wrap=True)

    failed = False
    for name in names_of("dataset", dataset):
        try:
            with stoppable(), _byte_bars() as progress:
                report = fetch_dataset(
                    name,
                    Settings.from_environment().paths,
                    archives_dir=archives,
                    on_terms=show_terms,
                    progress=progress,
                )
        except EmbeddingsError as error:
            failed = True
            show_error(error)
            continue
        out.print(f"{name}: {report.status}, {report.folder}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _byte_bars() -> Iterator[Callable[[str], "Progress"]]:
    """A progress bar in bytes for each file, on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from embeddings_assets.cli.console import err

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bars:

        def show(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total or None)

        yield show


@datasets_app.command("duplicates")
def datasets_duplicates(
    dataset: Annotated[str, typer.Argument(help="A dataset's name, or 'all'.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show byte-identical images of a dataset: within a split, across its splits, and across datasets."""
    from embeddings_assets.catalog import SPLITS, names_of
    from embeddings_assets.cli.console import show_error, show_not_compared
    from embeddings_assets.quality.duplicates import are_prepared, find_duplicates
    from embeddings_assets.settings import Settings
    from embeddings_assets.store.schema import MANIFEST_NAME

    paths = Settings.from_environment().paths
    names = names_of("dataset", dataset)
    unreadable: dict[Path, StoreError] = {}
    groups = find_duplicates(paths, names, among=names_of("dataset", "all"), unreadable=unreadable)
    own = {paths.processed_split(name, split) / MANIFEST_NAME for name in names for split in SPLITS}
    damaged = [error for path, error in unreadable.items() if path in own]
    if not damaged and not are_prepared(paths, names):
        raise EmbeddingsError(
            f"{paths.processed}: nothing of {dataset} is prepared, so no image was compared.",
            remedy=f'embeddings-assets prepare --dataset "{dataset}"',
        )
    if as_json:
        typer.echo(json.dumps([asdict(group) for group in groups], indent=2))
    else:
        _show_groups(groups)
    show_not_compared(error for path, error in unreadable.items() if path not in own)
    for error in damaged:
        show_error(error)
    if damaged:
        raise typer.Exit(1)


def _show_groups(groups: Sequence["DuplicateGroup"]) -> None:
    from embeddings_assets.cli.console import out
    from embeddings_assets.quality.duplicates import describe

    kinds = {
        "Across datasets": [group for group in groups if group.across_datasets],
        "Across splits": [group for group in groups if group.across_splits and not group.across_datasets],
        "Within a split": [
            group for group in groups if not group.across_splits and not group.across_datasets
        ],
    }
    for kind, found in kinds.items():
        out.print(f"{kind}: {len(found)}")
        for group in found:
            out.print(f"  {describe(group)}", markup=False, soft_wrap=True)
