"""Streaming: one global order of samples whatever the layout of the job, and a state of two numbers."""

from sage_scale.streaming.batch import Batch, SampleShape
from sage_scale.streaming.mixture import Data, open_datasets
from sage_scale.streaming.opening import check_datasets, open_evaluation, open_stream
from sage_scale.streaming.packing import pack_sample
from sage_scale.streaming.per_node import OncePerNode
from sage_scale.streaming.read_counts import DataStallMonitor, ReadCounts
from sage_scale.streaming.readers import DamagedSample
from sage_scale.streaming.stream import Stream
from sage_scale.streaming.webdataset import WebBatch, open_webdataset
