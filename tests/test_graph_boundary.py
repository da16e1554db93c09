"""What a run's configuration may say: folders inside the boundary, values inside their range."""

import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from graph_support import CLIP, PROCESSED, Graph, failures, graph_of, values

from embeddings_assets.errors import SettingsError
from embeddings_assets.graph.resources import DataResource, GpuResource
from embeddings_assets.settings import Settings

pytest_plugins = ("graph_fixtures",)


@pytest.mark.parametrize(
    "config",
    [
        {"raw_dir": "{outside}"},
        {"raw_dir": "{root}/../elsewhere"},
    ],
)
def test_a_run_cannot_leave_the_data_root(graph: Graph, tmp_path: Path, config: dict[str, str]) -> None:
    root = graph.settings.data_root
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    given = {name: value.format(root=root, outside=outside) for name, value in config.items()}
    result = graph.run(PROCESSED, data=given)
    assert "outside the configured data root" in failures(result)["processed_images"].error_display_string
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "root", ["{outside}", "{root}/../elsewhere", "{root}/link", "{root}/trial", "{root}/raw"]
)
def test_a_run_cannot_have_another_data_root(graph: Graph, tmp_path: Path, root: str) -> None:
    """A partition stands for its files in the configured one."""
    configured, outside = graph.settings.data_root, tmp_path / "outside"
    outside.mkdir()
    (configured / "link").symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    result = graph.run(PROCESSED, data={"root": root.format(root=configured, outside=outside)}, checks=())
    failure = failures(result)["processed_images"].user_failure_data
    assert f"is not the configured data root {configured}" in failure.description
    assert "leave data.root out" in failure.metadata["remedy"].value
    assert sorted(tmp_path.rglob("*")) == before
    assert graph.instance.get_materialized_partitions(PROCESSED) == set()


def test_a_run_cannot_load_weights_from_elsewhere(graph: Graph, tmp_path: Path) -> None:
    result = graph.run(CLIP, gpu={"weights": str(tmp_path / "outside")})
    failure = failures(result)["embeddings__CLIP"].user_failure_data
    assert "outside the configured folders" in failure.description
    assert "EMBEDDINGS_WEIGHTS" in failure.metadata["remedy"].value


def test_a_run_cannot_replace_trained_vectors_by_random_ones(settings: Settings, tmp_path: Path) -> None:
    """Any page in a browser on the machine can launch a run."""
    graph = graph_of(replace(settings, weights=str(tmp_path / "weights")))
    result = graph.run(CLIP, gpu={"weights": "random"})
    failure = failures(result)["embeddings__CLIP"].user_failure_data
    assert "would replace embeddings made with trained ones" in failure.description


def test_a_run_may_name_the_data_root_and_a_raw_folder_inside_it(graph: Graph, tmp_path: Path) -> None:
    root = graph.settings.data_root
    mirror = tmp_path / "disk"
    shutil.move(root / "raw", mirror)
    (root / "mirror").symlink_to(mirror)
    result = graph.run(PROCESSED, data={"root": f"{root}/.", "raw_dir": str(root / "mirror")})
    assert result.success, failures(result)
    assert Path(values(result, PROCESSED)["raw_folder"]) == mirror / "CUB_200_2011"


def test_an_unbound_resource_refuses_every_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not bound to a data root"):
        DataResource(root=str(tmp_path)).paths  # noqa: B018


def test_a_device_that_dagster_cannot_offer_is_refused() -> None:
    with pytest.raises(SettingsError, match="EMBEDDINGS_DEVICE is 'cuda:1'"):
        GpuResource.bound_to(Settings(device="cuda:1"))


def test_unknown_values_are_refused_before_a_run_starts(graph: Graph) -> None:
    for config in ({"precision": "double"}, {"device": "tpu"}, {"batchsize": 3}):
        with pytest.raises(dg.DagsterInvalidConfigError):
            graph.run(CLIP, gpu=config)


@pytest.mark.parametrize("config", [{"workers": 100_000}, {"batch_size": 10**9}, {"shard_rows": 0}])
def test_a_number_out_of_bounds_stops_the_run_before_any_process_is_started(
    graph: Graph, config: dict[str, int]
) -> None:
    result = graph.run(CLIP, gpu=config)
    assert not result.success
    (name,) = config
    assert name in str([event.event_specific_data for event in result.all_events if event.is_failure])
    assert result.get_asset_materialization_events() == []
