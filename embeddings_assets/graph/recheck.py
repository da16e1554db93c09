"""The job `recheck`: one check, alone, of the partitions that a person names in the launchpad.

Dagster 1.13 cannot execute a single check of a partitioned asset from its page in the UI.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import dagster as dg

from embeddings_assets.catalog import MODELS
from embeddings_assets.errors import UnknownNameError
from embeddings_assets.graph.checks import EMBEDDINGS_CHECKS, embeddings_results, materialized
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.history import evaluation_of, latest_materialization
from embeddings_assets.graph.keys import PROCESSED, embeddings_key
from embeddings_assets.graph.manifest_checks import MANIFEST_CHECKS, manifest_results
from embeddings_assets.graph.resources import DataResource

RECHECK = "recheck"


def recheck_job(width: str) -> dg.JobDefinition:
    """The job; `width` is the setting that the embeddings' assets were built with."""
    models = {embeddings_key(model).to_user_string(): model for model in MODELS}
    checks: Mapping[str, Mapping[str, str]] = {
        PROCESSED.to_user_string(): MANIFEST_CHECKS,
        **dict.fromkeys(models, EMBEDDINGS_CHECKS),
    }
    names = dict.fromkeys(name for of_asset in checks.values() for name in of_asset)

    @dg.op(
        name="check",
        config_schema={
            "asset": dg.Field(_one_of("RecheckedAsset", checks), description="Whose check."),
            "check": dg.Field(_one_of("RecheckedCheck", names), description="Its name."),
            "partitions": dg.Field(
                [str],
                default_value=[],
                description="`dataset|split`, such as CUB-200-2011|test; none: every materialized partition.",
            ),
        },
        out=dg.Out(dg.Nothing),
    )
    def check(context: dg.OpExecutionContext, data: DataResource) -> Iterator[Any]:
        asset, name = context.op_config["asset"], context.op_config["check"]
        with shown_as_failures():
            if name not in checks[asset]:
                raise UnknownNameError(
                    f"{asset} has no check {name!r}.", remedy=f"use one of {', '.join(checks[asset])}"
                )
        key = dg.AssetKey.from_user_string(asset)
        results: Callable[[str], Iterator[dg.AssetCheckResult]]
        if key == PROCESSED:
            results = partial(manifest_results, [name], data, context.instance)
        else:
            results = partial(embeddings_results, models[asset], width, [name], data, context.instance)
        chosen = context.op_config["partitions"] or materialized(context.instance, key)
        for partition in chosen:
            made = latest_materialization(context.instance, key, partition)
            for result in results(partition):
                found = "passed" if result.passed else "FAILED"
                context.log.info(f"{asset} {partition}: {name} {found}: {result.metadata['found'].value}")
                yield evaluation_of(key, result, partition, made)
        context.log.info(f"{name} of {asset}: partitions checked: {len(chosen)}")
        yield dg.Output(None)

    @dg.job(
        name=RECHECK,
        executor_def=dg.in_process_executor,
        description="Make one check again, alone, from the files of the partitions that the launchpad names.",
    )
    def recheck() -> None:
        check()

    return recheck


def _one_of(kind: str, names: Mapping[str, Any]) -> dg.Enum:
    return dg.Enum(kind, [dg.EnumValue(name) for name in names])
