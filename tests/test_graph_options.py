"""Options of the data resource that change what a manifest means."""

import pytest
from graph_support import CLIP, CUB, PROCESSED, Graph, failures, values

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.splits import HoldOut
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import read_split_footer

pytest_plugins = ("graph_fixtures",)

FLOWERS = "Oxford 102 Flowers"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_run_keeps_what_the_dataset_was_prepared_with(graph: Graph, split: str) -> None:
    paths = graph.settings.paths
    rule = HoldOut(share=0.34, seed=5)
    before = {
        report.split: report for report in prepare_dataset(CUB, paths, hold_out=rule, crop="bounding_box")
    }
    result = graph.run(PROCESSED, partition=f"{CUB}|{split}", checks=())
    assert result.success, failures(result)
    assert values(result, PROCESSED)["fingerprint"] == before[split].fingerprint
    options = open_manifest(paths, CUB, split).footer["options"]
    assert options == {"hold_out": {"share": 0.34, "seed": 5}, "crop": "bounding_box"}


def test_an_option_named_in_the_launchpad_decides_where_nothing_stands(graph: Graph) -> None:
    paths = graph.settings.paths
    for split in ("train", "validation", "test"):
        for path in paths.processed_split(CUB, split).iterdir():
            path.unlink()
    result = graph.run(PROCESSED, checks=(), data={"crop": "bounding_box", "hold_out_share": 0.5})
    assert result.success, failures(result)
    options = open_manifest(paths, CUB, "test").footer["options"]
    assert options == {"hold_out": {"share": 0.5, "seed": 0}, "crop": "bounding_box"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"crop": "bounding_box"}, "was prepared with crop none"),
        ({"hold_out_seed": 7}, "was prepared with hold_out seed 0, share 0.1"),
        ({"crop": "banner"}, "has no banner"),
    ],
)
def test_one_partition_cannot_leave_the_others_behind(
    graph: Graph, data: dict[str, object], text: str
) -> None:
    result = graph.run(PROCESSED, checks=(), data=data)
    assert not result.success
    (failure,) = failures(result).values()
    assert text in str(failure.user_failure_data.description)


def test_a_hold_out_without_use_fails_no_partition(graph: Graph) -> None:
    """One launch may ask it of datasets of both kinds."""
    write_synthetic(graph.settings.paths.raw, FLOWERS, classes=3, train_per_class=4, test_per_class=2)
    result = graph.run(PROCESSED, partition=f"{FLOWERS}|test", checks=(), data={"hold_out_share": 0.2})
    assert result.success, failures(result)
    assert open_manifest(graph.settings.paths, FLOWERS, "test").footer["options"]["hold_out"] is None


def test_the_crop_reaches_the_vectors(graph: Graph) -> None:
    prepare_dataset(CUB, graph.settings.paths, crop="bounding_box")
    result = graph.run(CLIP, checks=())
    assert result.success, failures(result)
    footer = read_split_footer(graph.settings.paths.embeddings_split("CLIP", CUB, "test"))
    assert footer is not None
    assert footer["recipe"]["crop"] == "bounding_box"
