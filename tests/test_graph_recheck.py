"""The job `recheck`: one check of one asset, of the partitions named, from the files on disk."""

from typing import Any

import dagster as dg
import pytest
from graph_support import CLIP, CUB, PARTITION, PROCESSED, Graph, failures, shown, store_unit_vectors

from embeddings_assets.graph.recheck import RECHECK
from embeddings_assets.store.reading import part_files

pytest_plugins = ("graph_fixtures",)


def recheck(graph: Graph, **config: Any) -> dg.ExecuteInProcessResult:
    run_config = {
        "ops": {"check": {"config": config}},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    job = graph.defs.resolve_job_def(RECHECK)
    return job.execute_in_process(instance=graph.instance, raise_on_error=False, run_config=run_config)


def statuses(graph: Graph) -> dict[tuple[str, str], str]:
    return shown(graph.instance, [*graph.check_keys(CLIP), *graph.check_keys(PROCESSED)])


@pytest.fixture
def two_splits(graph: Graph) -> Graph:
    """CLIP's made-up vectors of two splits, materialized and never checked."""
    for split in ("train", "test"):
        store_unit_vectors(graph.settings, "CLIP", split)
        assert graph.run(CLIP, partition=f"{CUB}|{split}", checks=()).success
    return graph


def test_one_check_of_one_partition_is_made_alone(two_splits: Graph) -> None:
    result = recheck(two_splits, asset="embeddings/CLIP", check="readable", partitions=[PARTITION])
    assert result.success
    assert result.get_asset_materialization_events() == []
    assert statuses(two_splits) == {("readable", PARTITION): "SUCCEEDED"}
    (part,) = part_files(two_splits.settings.paths.embeddings_split("CLIP", CUB, "test"))
    part.write_bytes(part.read_bytes()[:-100])
    result = recheck(two_splits, asset="embeddings/CLIP", check="readable", partitions=[PARTITION])
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key, check.check_name, check.partition) == (CLIP, "readable", PARTITION)
    assert not check.passed
    assert statuses(two_splits) == {("readable", PARTITION): "FAILED"}
    assert any(f"{PARTITION}: readable FAILED" in line for line in two_splits.log_of(result))


def test_a_check_of_a_run_that_is_made_again_stays_in_the_ui(graph: Graph) -> None:
    store_unit_vectors(graph.settings, "CLIP")
    assert graph.run(CLIP).success
    keys = graph.check_keys(CLIP)
    sound = shown(graph.instance, keys)
    assert sound.keys() == {(key.name, PARTITION) for key in keys}
    assert sound["readable", PARTITION] == "SUCCEEDED"
    again = {"asset": "embeddings/CLIP", "check": "readable", "partitions": [PARTITION]}
    assert recheck(graph, **again).success
    assert shown(graph.instance, keys) == sound
    (part,) = part_files(graph.settings.paths.embeddings_split("CLIP", CUB, "test"))
    part.write_bytes(part.read_bytes()[:-100])
    assert recheck(graph, **again).success
    assert shown(graph.instance, keys) == {**sound, ("readable", PARTITION): "FAILED"}


def test_every_materialized_partition_where_none_is_named(two_splits: Graph) -> None:
    assert recheck(two_splits, asset="embeddings/CLIP", check="unit_norm").success
    assert statuses(two_splits) == {
        ("unit_norm", f"{CUB}|{split}"): "SUCCEEDED" for split in ("train", "test")
    }
    assert recheck(
        two_splits, asset="processed_images", check="official_counts", partitions=[PARTITION]
    ).success
    assert statuses(two_splits)[("official_counts", PARTITION)] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"asset": "processed_images", "check": "unit_norm"}, "processed_images has no check 'unit_norm'"),
        ({"asset": "embeddings/CLIP", "check": "readable", "partitions": ["../raw|test"]}, "Unknown dataset"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_remedy(
    graph: Graph, config: dict[str, Any], message: str
) -> None:
    result = recheck(graph, **config)
    assert message in str(failures(result)["check"].user_failure_data.description)
    assert statuses(graph) == {}


@pytest.mark.parametrize("config", [{"asset": "embeddings/CLIP", "check": "taste"}, {"asset": "raw_images"}])
def test_the_launchpad_knows_assets_and_checks(graph: Graph, config: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        recheck(graph, **config)
