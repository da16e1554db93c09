"""The checks: each fails on the damage it is for, from the files on disk, for one partition."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from graph_support import (
    CLIP,
    CUB,
    FRANCA,
    PARTITION,
    PROCESSED,
    Graph,
    failed,
    failures,
    graph_of,
    outcomes,
    shown,
    store_unit_vectors,
    values,
)

from embeddings_assets.catalog import get_model
from embeddings_assets.graph.checks import embeddings_checks
from embeddings_assets.graph.partitions import dataset_splits
from embeddings_assets.graph.resources import DataResource
from embeddings_assets.settings import Settings
from embeddings_assets.store.footer import recipe_fingerprint
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.parquet import open_writer
from embeddings_assets.store.reading import part_files
from embeddings_assets.store.schema import FOOTER_KEY
from embeddings_assets.store.verify import CHECKS

pytest_plugins = ("graph_fixtures",)

ALL = {*CHECKS, "weights_trained", "not_left_failed"}
FROM_FILES = ALL - {"not_left_failed"}


def rewrite(part: Path, change: Callable[[pa.Table, dict[str, object]], pa.Table]) -> None:
    """Write a part again in the right encoding, with other rows or another footer."""
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    table = change(pq.ParquetFile(part).read(), footer)
    footer["recipe_fingerprint"] = recipe_fingerprint(footer)
    encoding = {"use_dictionary": False, "column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"}}
    with part.open("wb") as stream, open_writer(stream, table.schema, footer, **encoding) as writer:
        writer.write_table(table)


def with_vectors(table: pa.Table, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    column = table.column("embedding").combine_chunks()
    matrix = change(column.flatten().to_numpy().reshape(len(table), -1).copy())
    kind = pa.list_(column.type.value_field, matrix.shape[1])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32).ravel()), type=kind)
    return table.set_column(table.num_columns - 1, pa.field("embedding", kind, nullable=False), vectors)


def truncated(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-100])


def scrambled(part: Path) -> None:
    """The footer stays readable, the pages do not."""
    data = bytearray(part.read_bytes())
    data[200:4000] = bytes(255 - byte for byte in data[200:4000])
    part.write_bytes(data)


def narrow(part: Path) -> None:
    def change(table: pa.Table, footer: dict[str, object]) -> pa.Table:
        footer["width"] = 256
        return with_vectors(
            table, lambda matrix: matrix[:, :256] / np.linalg.norm(matrix[:, :256], axis=1)[:, None]
        )

    rewrite(part, change)


def not_a_number(part: Path) -> None:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[3, 7] = np.nan
        return matrix

    rewrite(part, lambda table, footer: with_vectors(table, change))


def long_vectors(part: Path) -> None:
    rewrite(part, lambda table, footer: with_vectors(table, lambda matrix: matrix * 1.01))


def swapped(part: Path) -> None:
    order = pa.array([1, 0, *range(2, 10)])
    rewrite(part, lambda table, footer: table.take(order))


def relabelled(part: Path) -> None:
    def change(table: pa.Table, footer: dict[str, object]) -> pa.Table:
        labels = table.column("label").to_pylist()
        wrong = pa.array([4 - label for label in labels], pa.int32())
        return table.set_column(2, table.schema.field("label"), wrong)

    rewrite(part, change)


def other_checkpoint(part: Path) -> None:
    def change(table: pa.Table, footer: dict[str, object]) -> pa.Table:
        footer["checkpoint"] = "someone/else"
        return table

    rewrite(part, change)


def gone(part: Path) -> None:
    shutil.rmtree(part.parent)


def check_clip(graph: Graph) -> dg.ExecuteInProcessResult:
    """Run the checks of CLIP alone."""
    result = graph.run(checks=graph.check_keys(CLIP))
    # A failed blocking check also fails the run, after every result is recorded.
    assert result.success is ("dimension" not in failed(result, CLIP)), failures(result)
    assert not result.get_asset_materialization_events()
    assert set(outcomes(result, CLIP)) == ALL
    return result


def test_sound_files_pass_and_each_result_shows_expected_and_found(graph: Graph) -> None:
    store_unit_vectors(graph.settings, "CLIP", trained=True)
    found = outcomes(check_clip(graph), CLIP)
    assert {name for name, check in found.items() if not check.passed} == set()
    for check in found.values():
        assert {"expected", "found"} <= set(check.metadata)
        assert check.partition == PARTITION
    assert {found["dimension"].metadata[name].value for name in ("expected", "found")} == {"512"}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncated, FROM_FILES),
        (scrambled, {"readable", "finite", "unit_norm"}),
        (narrow, {"dimension"}),
        (not_a_number, {"finite"}),
        (long_vectors, {"unit_norm"}),
        (swapped, {"manifest_order"}),
        (relabelled, {"labels"}),
        (other_checkpoint, {"footer"}),
        (gone, FROM_FILES),
    ],
)
def test_damage_fails_the_check_that_is_for_it(
    graph: Graph, damage: Callable[[Path], None], expected: set[str]
) -> None:
    store_unit_vectors(graph.settings, "CLIP", trained=True)
    folder = graph.settings.paths.embeddings_split("CLIP", CUB, "test")
    damage(part_files(folder)[0])
    result = check_clip(graph)
    assert expected <= failed(result, CLIP)
    bystanders = failed(result, CLIP) - expected
    # A change of the rows may also break what the footer says of all of them together; behind damaged pages
    # nothing can be checked.
    assert damage is scrambled or bystanders <= {"footer", "manifest_order", "size"}, bystanders
    for name in expected:
        check = outcomes(result, CLIP)[name]
        assert check.severity == dg.AssetCheckSeverity.ERROR
        assert f'--dataset "{CUB}" --split test' in check.metadata["remedy"].value


def test_a_check_that_cannot_be_made_fails_and_says_why(graph: Graph) -> None:
    store_unit_vectors(graph.settings, "CLIP")
    shutil.rmtree(graph.settings.paths.processed)
    result = check_clip(graph)
    assert failed(result, CLIP) == {"row_count", "manifest_order", "labels", "weights_trained"}
    assert "no manifest" in outcomes(result, CLIP)["labels"].metadata["found"].value


@pytest.mark.parametrize(
    ("trained", "passed", "text"),
    [
        (True, True, "a published checkpoint"),
        (None, True, "not a known published one"),
        (False, False, "untrained (random) weights"),
    ],
)
def test_untrained_weights_warn(graph: Graph, trained: bool | None, passed: bool, text: str) -> None:
    store_unit_vectors(graph.settings, "CLIP", trained=trained)
    result = graph.run(checks=[dg.AssetCheckKey(CLIP, "weights_trained")])
    assert set(outcomes(result, CLIP)) == {"weights_trained"}
    check = outcomes(result, CLIP)["weights_trained"]
    assert check.passed is passed
    assert text in check.metadata["found"].value
    if not passed:
        assert check.severity == dg.AssetCheckSeverity.WARN


def test_the_width_expected_is_that_of_the_built_graph(settings: Settings) -> None:
    store_unit_vectors(settings, "Franca")
    native = graph_of(Settings(data_root=settings.data_root, weights="random", width="native"))
    only = [dg.AssetCheckKey(FRANCA, "dimension")]
    found = outcomes(native.run(checks=only), FRANCA)["dimension"]
    assert (found.metadata["expected"].value, found.metadata["found"].value) == ("768", "512")
    assert not found.passed
    assert outcomes(graph_of(settings).run(checks=only), FRANCA)["dimension"].passed


def test_results_are_kept_per_partition(graph: Graph) -> None:
    store_unit_vectors(graph.settings, "CLIP", trained=True)
    keys = graph.check_keys(CLIP)
    graph.run(checks=keys)
    graph.run(checks=keys, partition=f"{CUB}|train")
    assert shown(graph.instance, keys) == {
        **{(key.name, PARTITION): "SUCCEEDED" for key in keys},
        **{
            (key.name, f"{CUB}|train"): "SUCCEEDED" if key.name == "not_left_failed" else "FAILED"
            for key in keys
        },
    }


@pytest.mark.parametrize(("damage", "ran"), [(narrow, False), (long_vectors, True)])
def test_only_a_wrong_dimension_blocks_what_comes_after(
    settings: Settings, damage: Callable[[Path], None], ran: bool
) -> None:
    @dg.asset(key=CLIP, partitions_def=dataset_splits)
    def damaged() -> None:
        store_unit_vectors(settings, "CLIP")
        damage(part_files(settings.paths.embeddings_split("CLIP", CUB, "test"))[0])

    @dg.asset(deps=[CLIP], partitions_def=dataset_splits)
    def after() -> None:
        pass

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [damaged, after, embeddings_checks(get_model("CLIP"), "contract")],
            partition_key=PARTITION,
            instance=instance,
            resources={"data": DataResource.bound_to(settings)},
            raise_on_error=False,
        )
    made = {event.asset_key for event in result.get_asset_materialization_events()}
    assert (dg.AssetKey("after") in made) is ran


def test_manifests_are_checked(graph: Graph) -> None:
    keys = graph.check_keys(PROCESSED)
    assert failed(graph.run(checks=keys), PROCESSED) == set()

    path = graph.settings.paths.processed_split(CUB, "test") / "manifest.parquet"
    sound = path.read_bytes()
    path.write_bytes(sound[:-50])
    found = outcomes(graph.run(checks=keys), PROCESSED)
    assert {name for name, check in found.items() if not check.passed} == {*found} - {"not_left_failed"}
    assert "prepare" in found["readable"].metadata["remedy"].value

    path.write_bytes(sound)
    manifest = open_manifest(graph.settings.paths, CUB, "test")
    rows = manifest.slice(0, manifest.rows)
    with (
        path.open("wb") as stream,
        open_writer(stream, rows.schema, manifest.footer, use_dictionary=False) as writer,
    ):
        writer.write_table(rows.take(pa.array([1, 0, *range(2, rows.num_rows)])))
    assert failed(graph.run(checks=keys), PROCESSED) == {"readable"}


def test_unusable_images_are_held_to_the_policy(graph: Graph) -> None:
    images = sorted((graph.settings.paths.raw_folder(CUB) / "images").rglob("*.jpg"))
    for image in images:
        image.write_bytes(image.read_bytes() if image != images[-1] else b"")
    partitions = [f"{CUB}|{split}" for split in ("train", "validation", "test")]
    loose = {"max_bad_share": 0.5}
    for partition in partitions:
        assert graph.run(PROCESSED, partition=partition, data=loose).success
    only = [dg.AssetCheckKey(PROCESSED, "ledger_share")]
    strict = [graph.run(checks=only, partition=key, data={"strict": True}) for key in partitions]
    lenient = [graph.run(checks=only, partition=key, data=loose) for key in partitions]
    assert [failed(result, PROCESSED) for result in strict].count({"ledger_share"}) == 1
    assert [failed(result, PROCESSED) for result in lenient] == [set(), set(), set()]


def test_other_counts_than_the_official_ones_warn(graph: Graph) -> None:
    only = [dg.AssetCheckKey(PROCESSED, "official_counts")]
    assert outcomes(graph.run(checks=only), PROCESSED)["official_counts"].passed
    (graph.settings.paths.raw_folder(CUB) / "SYNTHETIC.txt").unlink()
    for partition, found in ((PARTITION, "10 listed"), (f"{CUB}|train", "30 listed")):
        check = outcomes(graph.run(checks=only, partition=partition), PROCESSED)["official_counts"]
        assert not check.passed
        assert check.severity == dg.AssetCheckSeverity.WARN
        assert check.metadata["found"].value == found
    shutil.rmtree(graph.settings.paths.processed_split(CUB, "validation"))
    check = outcomes(graph.run(checks=only, partition=f"{CUB}|train"), PROCESSED)["official_counts"]
    assert check.passed
    assert "not prepared yet" in check.metadata["expected"].value


def test_an_image_of_two_splits_warns_in_both(graph: Graph) -> None:
    only = [dg.AssetCheckKey(PROCESSED, "no_duplicates_across_splits")]
    found = outcomes(graph.run(checks=only), PROCESSED)["no_duplicates_across_splits"]
    assert found.passed
    assert found.metadata["found"].value == "none"

    rows = {}
    for split in ("train", "test"):
        manifest = open_manifest(graph.settings.paths, CUB, split)
        rows[split] = manifest.slice(0, 1).to_pylist()[0]
        rows[split]["file"] = manifest.resolve(rows[split]["image_path"])
    shutil.copy(rows["train"]["file"], rows["test"]["file"])
    for split, warns in (("test", True), ("train", True), ("validation", False)):
        result = graph.run(PROCESSED, partition=f"{CUB}|{split}", checks=())
        assert result.success
        check = outcomes(graph.run(checks=only, partition=f"{CUB}|{split}"), PROCESSED)[only[0].name]
        assert check.passed is not warns
        if warns:
            assert check.severity == dg.AssetCheckSeverity.WARN
            told = str(check.metadata["found"].value)
            assert f"{rows['train']['image_id']} (train" in told
            assert f"{rows['test']['image_id']} (test" in told
            assert "datasets duplicates" in str(check.metadata["remedy"].value)
    assert values(graph.run(PROCESSED), PROCESSED)["duplicates_across_splits"] == 1


def test_without_a_partition_nothing_passes_where_nothing_is_materialized(graph: Graph) -> None:
    """A partition that the catalog no longer knows stops no check either."""
    graph.instance.report_runless_asset_event(dg.AssetMaterialization(CLIP, partition="Gone|train"))
    only = [dg.AssetCheckKey(CLIP, "readable")]
    result = graph.run(partition=None, checks=only)
    assert result.success, failures(result)
    check = outcomes(result, CLIP)["readable"]
    assert not check.passed
    assert check.metadata["found"].value == "0 of 0 pass"


def test_without_a_partition_every_materialized_one_is_checked(graph: Graph) -> None:
    """As the button *Execute all* does."""
    for split in ("train", "test"):
        store_unit_vectors(graph.settings, "CLIP", split, trained=True)
        assert graph.run(CLIP, partition=f"{CUB}|{split}").success
    long_vectors(graph.settings.paths.embeddings_split("CLIP", CUB, "train") / "part-00000.parquet")
    keys = graph.check_keys(CLIP)
    result = graph.run(partition=None, checks=keys)
    assert result.success, failures(result)
    sums = {
        check.check_name: check for check in result.get_asset_check_evaluations() if check.partition is None
    }
    assert {key.name for key in keys} == set(sums)
    assert sums["dimension"].metadata["found"].value == "2 of 2 pass"
    assert sums["unit_norm"].metadata["found"].value == f"1 of 2 pass; not {CUB}|train"
    assert {name for name, check in sums.items() if check.passed} == set(sums) - {
        *("weights_trained", "unit_norm", "size")
    }
    assert sums["weights_trained"].severity == dg.AssetCheckSeverity.WARN
    assert shown(graph.instance, keys) == {
        (key.name, f"{CUB}|{split}"): "FAILED"
        if key.name == "weights_trained" or (split == "train" and key.name in ("unit_norm", "size"))
        else "SUCCEEDED"
        for key in keys
        for split in ("train", "test")
    }
