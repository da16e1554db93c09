"""The partitions of the assets: dataset, and dataset x split, from the catalog.

A partition key comes from a browser; it is looked up in the catalog before it reaches a path.
"""

import dagster as dg

from embeddings_assets.catalog import DATASETS, SPLITS, get_dataset, get_split

datasets = dg.StaticPartitionsDefinition([dataset.name for dataset in DATASETS])

dataset_splits = dg.MultiPartitionsDefinition(
    {
        "dataset": datasets,
        "split": dg.StaticPartitionsDefinition(list(SPLITS)),
    }
)


def dataset_and_split(partition_key: str) -> tuple[str, str]:
    """The catalog names behind a key such as `CUB-200-2011|train`.

    Raises:
        UnknownNameError: the key names no dataset or split of the catalog.
    """
    dataset, _, split = partition_key.partition("|")
    return get_dataset(dataset).name, get_split(split)


def partition_of(dataset: str, split: str) -> dg.MultiPartitionKey:
    """The partition key of a dataset and a split."""
    return dg.MultiPartitionKey({"dataset": get_dataset(dataset).name, "split": get_split(split)})
