"""The shard format: layout, writer, index, markers, dataset, verification. Specified in shards/README.md."""

from sage_scale.shards.dataset import (
    Dataset,
    SampleTable,
    finish_dataset,
    open_dataset,
    open_units,
    publish_shard,
    read_rejects,
    restore_marker,
    start_dataset,
)
from sage_scale.shards.index import HAS_SENTENCE, build_index, make_marker
from sage_scale.shards.layout import DatasetInfo, PlannedUnit, Reject, Sample, Unit, sample_key
from sage_scale.shards.sample import read_sample, sample_hash
from sage_scale.shards.verify import VerifyReport, verify_dataset
from sage_scale.shards.writer import write_shard

__all__ = [
    "HAS_SENTENCE",
    "Dataset",
    "DatasetInfo",
    "PlannedUnit",
    "Reject",
    "Sample",
    "SampleTable",
    "Unit",
    "VerifyReport",
    "build_index",
    "finish_dataset",
    "make_marker",
    "open_dataset",
    "open_units",
    "publish_shard",
    "read_rejects",
    "read_sample",
    "restore_marker",
    "sample_hash",
    "sample_key",
    "start_dataset",
    "verify_dataset",
    "write_shard",
]
