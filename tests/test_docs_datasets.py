"""The dataset cards say what the catalog and the official lists say, and every command in them exists."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embeddings_assets.catalog import DATASETS, SPLITS, DatasetSpec
from embeddings_assets.cli.main import app
from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.splits import HoldOut, assign_splits

pytest_plugins = ("datasets_fixtures",)

CARDS = Path(__file__).parent.parent / "docs" / "datasets"


def card_of(spec: DatasetSpec) -> str:
    return (CARDS / f"{spec.name.lower().replace(' ', '-')}.md").read_text()


def row_of(card: str, name: str) -> dict[str, int]:
    """Counts by split in a row of the table; splits with a dash are left out."""
    (row,) = re.findall(rf"^\| {name} \|(.+)\|$", card, re.MULTILINE)
    cells = [cell.strip().replace(",", "") for cell in row.split("|")]
    return {split: int(cell) for split, cell in zip(SPLITS, cells, strict=True) if cell != "-"}


def test_there_is_a_card_for_every_dataset_and_no_other() -> None:
    assert len(list(CARDS.iterdir())) == len(DATASETS)


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_a_card_agrees_with_the_catalog(spec: DatasetSpec) -> None:
    card = card_of(spec)
    assert card.startswith(f"# {spec.name}\n")
    assert row_of(card, "official") == dict(spec.counts)
    assert f"\n{spec.classes} classes.\n" in card
    assert spec.homepage in card
    assert spec.citation in card
    for archive in spec.archives:
        assert f"`{archive.filename}`" in card
    assert ("--archives" in card) is not spec.can_be_fetched


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_the_prepared_counts_are_those_of_the_hold_out_rule(
    spec: DatasetSpec, official: dict[str, Listing]
) -> None:
    found = Counter(assign_splits(official[spec.name].records, HoldOut()))
    assert row_of(card_of(spec), "prepared") == dict(found)


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_every_command_of_a_card_exists(spec: DatasetSpec) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", card_of(spec), re.DOTALL)
    for line in block.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "embeddings-assets"
        assert spec.name in arguments
        words = [word for word in arguments[:2] if word in ("datasets", "fetch", "prepare")]
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        for option in (word for word in arguments if word.startswith("--")):
            assert option in shown.stdout
