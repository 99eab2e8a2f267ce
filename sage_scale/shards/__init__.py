"""The shard format: layout, writer, index, markers, dataset, verification. Specified in shards/README.md."""

from sage_scale.shards.commit import (
    finish_dataset,
    publish_shard,
    rebuild_index,
    restore_marker,
    start_dataset,
)
from sage_scale.shards.dataset import (
    Dataset,
    SampleTable,
    UnitListing,
    list_units,
    open_dataset,
    open_units,
    read_rejects,
)
from sage_scale.shards.index import HAS_SENTENCE, build_index, make_marker
from sage_scale.shards.layout import DatasetInfo, PlannedUnit, Reject, Sample, Unit, sample_key
from sage_scale.shards.sample import read_sample, sample_hash
from sage_scale.shards.texts import read_texts
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
    "UnitListing",
    "VerifyReport",
    "build_index",
    "finish_dataset",
    "list_units",
    "make_marker",
    "open_dataset",
    "open_units",
    "publish_shard",
    "read_rejects",
    "read_sample",
    "read_texts",
    "rebuild_index",
    "restore_marker",
    "sample_hash",
    "sample_key",
    "start_dataset",
    "verify_dataset",
    "write_shard",
]
