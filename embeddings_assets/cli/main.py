"""The command line `embeddings-assets`. It parses, calls the rooms, and shows what they return."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from embeddings_assets.cli.datasets import DatasetOption, datasets_app, prepare
from embeddings_assets.errors import EmbeddingsError

app = typer.Typer(
    help="Vision Transformer image embeddings of six fine-grained datasets, as checked parquet.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
weights_app = typer.Typer(help="Find, fetch and check model weights.", no_args_is_help=True)
app.add_typer(datasets_app, name="datasets")
app.add_typer(weights_app, name="weights")

RootOption = Annotated[
    Path | None, typer.Option("--root", help="Weights folder. Default: EMBEDDINGS_WEIGHTS, data/weights.")
]


def main() -> None:
    """Entry point of the `embeddings-assets` command."""
    run(app)


def run(command: typer.Typer) -> None:
    """Run a command line; an error of ours becomes two lines on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        command()
    except EmbeddingsError as error:
        from embeddings_assets.cli.console import show_error

        show_error(error)
        sys.exit(1)


app.command()(prepare)


@app.command()
def extract(
    model: Annotated[str, typer.Option("--model", help="CLIP, DINOv2, Franca, SigLIPv2, or 'all'.")],
    dataset: DatasetOption,
    split: Annotated[str, typer.Option(help="train, validation, test, or 'all'.")] = "all",
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", "--data_dir", help="Manifests. Default: data/processed.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "--output_dir", help="Results. Default: data/embeddings.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights folder, or 'random' (untrained). Default: EMBEDDINGS_WEIGHTS, data/weights."
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="exact (default) or fast.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (default), cpu, cuda, or several: cuda:0,cuda:1.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "--batch_size", min=1, help="Images per forward pass.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoding processes.")] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Images per staged shard.")] = 1024,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Unusable images to tolerate.")] = 0.01,
    strict: Annotated[bool, typer.Option("--strict", help="Tolerate no unusable image.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace splits that were made with another recipe.")
    ] = False,
) -> None:
    """Embed datasets and store them as parquet; resumes, reuses, and skips what is already right."""
    from embeddings_assets.catalog import names_of
    from embeddings_assets.cli.console import err, progress_bars, show_outcomes, stoppable
    from embeddings_assets.extraction.report import ExtractionOptions
    from embeddings_assets.pipeline import EncoderChoice, process_all
    from embeddings_assets.settings import Settings

    settings = Settings.from_environment()
    paths = settings.paths_with(data_dir, output_dir)
    choice = EncoderChoice(
        weights=settings.weights if weights is None else weights,
        fetch=weights is None,
        precision=settings.precision if precision is None else precision,
        width=settings.width,
        device=settings.device if device is None else device,
    )
    names = names_of("model", model), names_of("dataset", dataset), names_of("split", split)
    options = ExtractionOptions(
        batch_size=batch_size,
        workers=workers,
        shard_rows=shard_rows,
        max_bad_share=max_bad_share,
        strict=strict,
        replace=replace,
    )
    with stoppable(), progress_bars() as progress:
        outcomes = process_all(*names, paths, choice, options=options, progress=progress)
    show_outcomes(outcomes, paths.embeddings)
    if any(outcome.report and outcome.report.footer.get("trained") is False for outcome in outcomes):
        err.print("[yellow]Untrained weights: these vectors are for demo and tests only.[/]")
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def verify(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Split folders or trees of them. Default: data/embeddings.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", "--data_dir", help="Manifests. Default: beside the embeddings."),
    ] = None,
    without_manifest: Annotated[
        bool,
        typer.Option("--without-manifest", help="Check the files alone; rows and labels are not compared."),
    ] = False,
) -> None:
    """Prove every promise of embedding files from the files alone; exit 1 and a table of what is wrong."""
    from rich.markup import escape

    from embeddings_assets.cli.console import err, out, table
    from embeddings_assets.settings import Settings
    from embeddings_assets.store.verify import split_folders, verify_split

    wrong: list[tuple[str, ...]] = []
    verified = 0
    for root in paths or [Settings.from_environment().paths.embeddings]:
        folders = list(split_folders(root))
        if not folders:
            raise EmbeddingsError(
                f"{root}: no embeddings here.", remedy="embeddings-assets extract --model all --dataset all"
            )
        for folder in folders:
            above = [folder.resolve(), *folder.resolve().parents]
            processed = data_dir or above[min(4, len(above) - 1)] / "processed"
            for finding in verify_split(folder, processed=None if without_manifest else processed):
                if not finding.passed:
                    row = (str(folder), finding.check, finding.expected, finding.found)
                    wrong.append(tuple(escape(cell) for cell in row))
            verified += 1
    if wrong:
        table("What is wrong", ("Split", "Check", "Expected", "Found"), wrong)
        err.print(
            "  To mend: delete a wrong split, or move it away, and run `embeddings-assets extract` again."
        )
        raise typer.Exit(1)
    out.print(f"{verified} splits verified, nothing wrong.")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show what is ready, what is missing, and how to get it."""
    from embeddings_assets.cli.console import show_report
    from embeddings_assets.cli.doctor import examine
    from embeddings_assets.settings import Settings

    lines = examine(Settings.from_environment())
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        show_report(lines)


@app.command()
def demo(
    remove: Annotated[bool, typer.Option("--remove", help="Delete the demo's data again.")] = False,
) -> None:
    """Build six small drawn datasets and materialise every partition with untrained weights."""
    from embeddings_assets.cli.console import err, out, show_demo, stoppable
    from embeddings_assets.graph.demo import remove_demo, run_demo
    from embeddings_assets.settings import Settings

    settings = Settings.from_environment()
    if remove:
        remove_demo(settings)
        out.print("The demo's data and runs are deleted.")
        return
    with stoppable():
        rows = run_demo(settings, progress=lambda line: err.print(line, markup=False, soft_wrap=True))
    show_demo(rows)
    out.print("The vectors are of untrained weights, as every warning says. Next: make dev")


@weights_app.command("fetch")
def weights_fetch(
    model: Annotated[str, typer.Argument(help="A model's name, or 'all'.")], root: RootOption = None
) -> None:
    """Download checkpoints, check them, and record revision and sha256 in weights.lock."""
    from embeddings_assets.catalog import get_model, names_of
    from embeddings_assets.cli.console import err, out
    from embeddings_assets.encoders.weights.fetch import fetch_weights

    for name in names_of("model", model):
        spec = get_model(name)
        err.print(f"{name}: {spec.checkpoint}. Licence: {spec.licence}", soft_wrap=True)
        source = fetch_weights(name, _weights_root(root), progress=err.is_terminal)
        out.print(f"{name}: {source.path}  sha256 {source.sha256}", soft_wrap=True)


@weights_app.command("list")
def weights_list(root: RootOption = None) -> None:
    """Show which weights each model would use."""
    from rich.markup import escape

    from embeddings_assets.cli.console import table, weights_label
    from embeddings_assets.encoders.weights.inventory import list_weights

    rows = [
        (
            row.model,
            row.state,
            escape(str(row.path or row.problem or "-")),
            f"{row.size / 1e6:,.0f} MB" if row.size else "-",
            row.sha256 or "-",
            "-" if row.sha256 is None else weights_label(row.trained),
            row.licence,
        )
        for row in list_weights(_weights_root(root))
    ]
    columns = ("Model", "State", "File", "Size", "sha256", "Weights", "Licence")
    table(f"Weights in {_weights_root(root)}", columns, rows, right=("Size",))


@weights_app.command("verify")
def weights_verify(root: RootOption = None) -> None:
    """Hash every checkpoint again and compare with weights.lock; exit 1 if one differs."""
    from embeddings_assets.cli.console import err, out
    from embeddings_assets.encoders.weights.inventory import verify_weights

    problems = verify_weights(_weights_root(root))
    for problem in problems:
        err.print(problem, markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    out.print(f"{_weights_root(root)}: nothing wrong.")


def _weights_root(root: Path | None) -> Path:
    from embeddings_assets.settings import Settings

    return root or Settings.from_environment().weights_root


if __name__ == "__main__":
    main()
