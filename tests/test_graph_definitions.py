"""The graph as it is defined: shape, descriptions, what loading it costs, Dagster's own validation."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS, ModelSpec, get_model
from embeddings_assets.errors import UnknownNameError
from embeddings_assets.graph.assets import code_version
from embeddings_assets.graph.build import EVERYTHING, build_definitions
from embeddings_assets.graph.keys import RAW
from embeddings_assets.graph.partitions import dataset_and_split, dataset_splits, datasets, partition_of
from embeddings_assets.settings import Settings
from embeddings_assets.store.schema import MANIFEST_RULES, MANIFEST_SCHEMA, SCHEMA_VERSION, embedding_schema
from embeddings_assets.store.verify import CHECKS

REPOSITORY = Path(__file__).resolve().parent.parent
PROCESSED = dg.AssetKey("processed_images")


@pytest.fixture(scope="module", params=["contract", "native"])
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def defs(width: str) -> dg.Definitions:
    definitions = build_definitions(Settings(width=width))
    dg.Definitions.validate_loadable(definitions)
    return definitions


def spec_of(defs: dg.Definitions, key: dg.AssetKey) -> dg.AssetSpec:
    return next(spec for spec in defs.resolve_all_asset_specs() if spec.key == key)


def key_of(model: ModelSpec) -> dg.AssetKey:
    return dg.AssetKey(["embeddings", model.name])


def test_one_asset_per_model_follows_the_processed_images(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    assert graph.get_all_asset_keys() == {RAW, PROCESSED, *(key_of(model) for model in MODELS)}
    assert graph.get(PROCESSED).parent_keys == {RAW}
    raw = graph.get(RAW)
    assert (raw.is_external, raw.is_observable, raw.parent_keys) == (True, True, set())
    assert raw.partitions_def == datasets
    for model in MODELS:
        node = graph.get(key_of(model))
        assert node.parent_keys == {PROCESSED}
        assert node.group_name == "embeddings"
        assert node.pools == {"gpu"}
    assert graph.get(PROCESSED).pools == set()
    for key in graph.get_all_asset_keys() - {RAW}:
        assert graph.get(key).partitions_def == dataset_splits
        # Any policy, even one run per partition, leaves the checks of a backfill without a partition.
        assert graph.get(key).backfill_policy is None


def test_partitions_are_the_catalog_and_keys_are_looked_up() -> None:
    keys = dataset_splits.get_partition_keys()
    assert len(keys) == len(DATASETS) * len(SPLITS) == 18
    assert {dataset_and_split(key) for key in keys} == {
        (dataset.name, split) for dataset in DATASETS for split in SPLITS
    }
    assert partition_of("Oxford 102 Flowers", "test") == "Oxford 102 Flowers|test"
    for wrong in ("../../etc|train", "CUB-200-2011|../train", "CUB-200-2011", "train|CUB-200-2011"):
        with pytest.raises(UnknownNameError):
            dataset_and_split(wrong)


def test_column_schemas_are_those_of_the_files(defs: dg.Definitions, width: str) -> None:
    def columns(key: dg.AssetKey) -> list[dg.TableColumn]:
        return list(spec_of(defs, key).metadata["dagster/column_schema"].columns)

    assert [column.name for column in columns(PROCESSED)] == MANIFEST_SCHEMA.names
    for model in MODELS:
        stored = model.native_width if width == "native" else model.width
        found = columns(key_of(model))
        assert [column.name for column in found] == embedding_schema(stored).names
        assert found[-1].type == f"float32[{stored}]"
        assert all(column.description for column in found)


def test_assets_say_what_they_are(defs: dg.Definitions) -> None:
    for spec in defs.resolve_all_asset_specs():
        assert spec.description
        assert spec.owners == ["team:research"]
        (link,) = spec.metadata["dagster/code_references"].code_references
        assert Path(link.file_path).parent.name == "graph"
        assert f"def {'raw_images' if spec.key == RAW else spec.key.path[0]}" in "".join(
            Path(link.file_path).read_text().splitlines(keepends=True)[link.line_number - 1 :][:30]
        )
        assert {"file" if spec.key == RAW else "parquet"} < spec.kinds
    for model in MODELS:
        spec = spec_of(defs, key_of(model))
        assert model.licence in (spec.description or "")
        assert model.checkpoint in (spec.description or "")
        assert ("Research only" in (spec.description or "")) is model.research_only
        assert ("huggingface" in spec.kinds) is bool(model.hub_repo)


def test_each_asset_has_its_partitioned_checks(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for model in MODELS:
        keys = graph.get_check_keys_for_assets({key_of(model)})
        assert {key.name for key in keys} == {*CHECKS, "weights_trained", "not_left_failed"}
        blocking = {key.name for key in keys if graph.get(key).blocking}
        assert blocking == {"dimension"}
    for node in graph.asset_check_nodes:
        assert node.partitions_def == dataset_splits


def test_one_job_runs_everything_in_one_process(defs: dg.Definitions) -> None:
    job = defs.resolve_job_def(EVERYTHING)
    assert job.executor_def is dg.in_process_executor
    graph = defs.resolve_asset_graph()
    assert job.asset_layer.asset_graph.get_all_asset_keys() - {RAW} == graph.get_all_asset_keys() - {RAW}
    assert set(job.asset_layer.asset_graph.asset_check_keys) == set(graph.asset_check_keys)


def test_the_code_version_of_manifests_follows_their_schema_and_their_rules(defs: dg.Definitions) -> None:
    found = defs.resolve_asset_graph().get(PROCESSED).code_version
    assert found == f"manifest-schema{SCHEMA_VERSION}-rules{MANIFEST_RULES}"


def test_the_code_version_follows_the_width_where_there_is_a_projection() -> None:
    for name, follows in (("CLIP", False), ("DINOv2", False), ("Franca", True), ("SigLIPv2", True)):
        model = get_model(name)
        assert (code_version(model, Settings()) != code_version(model, Settings(width="native"))) is follows
    assert len({code_version(model, Settings(width="native")) for model in MODELS}) == len(MODELS)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("EMBEDDINGS_", "DAGSTER"))
    }
    return subprocess.run(
        command, cwd=REPOSITORY, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


def test_loading_the_definitions_loads_nothing_heavy() -> None:
    code = "import sys, embeddings_assets.definitions; print(*sys.modules)"
    loaded = run(sys.executable, "-W", "error::FutureWarning", "-c", code)
    assert loaded.returncode == 0, loaded.stderr
    heavy = {"torch", "torchvision", "transformers", "open_clip", "safetensors", "scipy", "huggingface_hub"}
    assert not heavy & set(loaded.stdout.split())
    assert loaded.stderr == ""


def test_dagster_validates_the_workspace_without_warnings_of_ours(tmp_path: Path) -> None:
    dagster = str(Path(sys.executable).with_name("dagster"))
    validated = run(dagster, "definitions", "validate", "-w", "workspace.yaml", DAGSTER_HOME=str(tmp_path))
    assert validated.returncode == 0, validated.stderr
    output = validated.stdout + validated.stderr
    assert "Validation successful for code location embeddings_assets" in output
    ours = [line for line in output.splitlines() if "Warning" in line and "embeddings_assets/" in line]
    assert ours == []
    assert "PreviewWarning" not in output
    assert "BetaWarning" not in output


def test_the_instance_settings_limit_the_pool_and_free_it_again(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.default_pool_limit == 1
        # Inside a run, Dagster's in-process executor waits for a place without a pause.
        assert concurrency.pool_config.pool_granularity.value == "run"
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 30
        assert not instance.telemetry_enabled


def test_the_workspace_names_the_definitions() -> None:
    (module,) = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())["load_from"]
    assert module["python_module"]["module_name"] == "embeddings_assets.definitions"
    project = (REPOSITORY / "pyproject.toml").read_text()
    # Either block would make `dagster dev` ignore workspace.yaml.
    assert "[tool.dagster]" not in project
    assert "[tool.dg]" not in project
