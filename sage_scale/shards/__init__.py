"""The shard format: layout, writer, index, markers, dataset, verification. shards/README.md specifies it."""

from sage_scale.errors import Reject
from sage_scale.shards.dataset import (
    Dataset,
    notice_note,
    open_dataset,
    read_metadata,
    unfinished_units,
)
from sage_scale.shards.index import HAS_SENTENCE, build_index, make_marker
from sage_scale.shards.layout import (
    DatasetInfo,
    Marker,
    PlannedUnit,
    UnitListing,
    list_units,
    sample_key,
)
from sage_scale.shards.publish import (
    delete_dataset,
    finish_dataset,
    publish_shard,
    rebuild_index,
    restore_marker,
    start_dataset,
)
from sage_scale.shards.rejects import read_rejects
from sage_scale.shards.sample import Sample, read_sample, sample_hash
from sage_scale.shards.sample_table import SampleTable
from sage_scale.shards.verify import VerifyReport, verify_dataset
from sage_scale.shards.writer import write_shard
