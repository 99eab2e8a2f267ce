"""The index of a WebDataset that others wrote: offset and hash of each sample. The tars are not touched.

One object, `sage-index.json`, beside the tars or elsewhere (then it has their URL): a line of checksummed JSON, as
index.json of our datasets; shards/README.md specifies it. A sample is a run of neighbouring members with the same key,
as in webdataset. Its bytes reach from its first header (extended headers included) to the padding behind its last one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from shlex import quote

import numpy as np

from sage_scale.errors import DatasetError, NoDataset, StorageError
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards.layout import checksummed_json, parse_checksummed_json
from sage_scale.shards.sample import sample_hash
from sage_scale.shards.tar import map_tar
from sage_scale.shards.webdataset_tar import (
    BEHIND,
    SkippedMembers,
    is_system_file,
    key_and_extension,
    members,
)
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.untrusted.display import printable
from sage_scale.untrusted.files import text_fault
from sage_scale.untrusted.json_values import build

WEB_INDEX_JSON = "sage-index.json"
WEB_FORMAT, WEB_VERSION = "sage-scale-webdataset-index", 1
WEB_RECORD = np.dtype([("offset", "<u8"), ("length", "<u8"), ("hash", "u1", 16)])
TORN = "sample whose members are not adjacent, which is read in pieces"
AGAIN = "sample whose key occurs earlier in the tar"
ODD = (TORN, AGAIN, BEHIND)
"""Kinds in `SkippedMembers` that are not skipped: these samples are read as webdataset reads them."""
_MAX_KEYS_BYTES = 1 << 34
"""Most bytes of all keys, unpacked: guards the memory."""


@dataclass(frozen=True, kw_only=True)
class IndexedTar:
    """One tar of the dataset."""

    name: str
    """Relative to the folder or prefix of the tars; may have folders."""
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class WebDatasetIndex:
    """An opened index."""

    url: str
    """URL of the index."""
    tars: str
    """URL of the tars."""
    shards: tuple[IndexedTar, ...]
    records: np.ndarray
    """WEB_RECORD (samples,), shard after shard."""
    keys: tuple[str, ...]
    """Key of each sample."""
    digest: str
    """32 hex digits that change with any sample or shard."""

    @property
    def shard_of(self) -> np.ndarray:
        """int32 (samples,): ordinal of each sample's shard."""
        counts = [shard.samples for shard in self.shards]
        return np.repeat(np.arange(len(self.shards), dtype=np.int32), counts)


def index_webdataset(
    tars: Store, out: Store | None = None, *, threads: int = 4, progress: ProgressCallback | None = None
) -> tuple[WebDatasetIndex, SkippedMembers]:
    """Reads every tar of `tars` and stores the index there, or in `out`. Returns index and skipped members.

    Raises DatasetError, naming tar and byte, for a tar that is not readable for certain, StorageError where the index
    cannot be stored.
    """
    entries = list(tars.list())
    sizes = {entry.name: entry.size for entry in entries if entry.name.endswith(".tar")}
    if not sizes:
        packed = [entry.name for entry in entries if entry.name.endswith((".tar.gz", ".tgz", ".tar.zst"))]
        hint = (
            f"; {packed[0]} is compressed: unpack it first"
            if packed
            else ": give the folder or prefix they lie in"
        )
        raise NoDataset(f"{tars.url} holds no .tar{hint}")
    if odd := next(filter(text_fault, sizes), ""):
        raise DatasetError(f"{tars.url} holds '{printable(odd)}', whose name is not UTF-8: rename it")
    scanned = map_threads(
        lambda name: _scan(tars, name), sizes, threads=threads, progress=progress, size=sizes.__getitem__
    )
    shards, keys_of, records, skipped_of = zip(*scanned)
    skipped = SkippedMembers()
    for one in skipped_of:
        skipped.update(one)
    keys = [key for some in keys_of for key in some]
    if not keys:
        raise DatasetError(f"{tars.url}: the tars hold no sample (no member with a name like key.extension)")
    values = {
        "format": WEB_FORMAT,
        "version": WEB_VERSION,
        "tars": "" if out is None else tars.url,
        "shards": [asdict(shard) for shard in shards],
        "samples": len(keys),
        "record_bytes": WEB_RECORD.itemsize,
        "records": base64.b64encode(np.concatenate(records).tobytes()).decode("ascii"),
        "keys": base64.b64encode(zlib.compress("\n".join(keys).encode(), 6)).decode("ascii"),
    }
    store = out or tars
    try:
        store.put(WEB_INDEX_JSON, checksummed_json(values))
    except StorageError as error:
        raise StorageError(
            f"{error} (--out puts the index elsewhere)" if out is None else str(error)
        ) from None
    return open_webdataset_index(store), skipped


def _scan(tars: Store, name: str) -> tuple[IndexedTar, list[str], np.ndarray, SkippedMembers]:
    """Returns the index entry of one tar, its keys, its WEB_RECORDs and its skipped members."""
    skipped = SkippedMembers(name)
    keys, records = [], []
    with map_tar(tars, name) as view:
        for key, start, end in _samples(view, f"{tars.url}/{name}", skipped):
            keys.append(key)
            records.append((start, end - start, np.frombuffer(sample_hash(view[start:end]), np.uint8)))
        sha256 = hashlib.sha256(view).hexdigest()
        shard = IndexedTar(name=name, bytes=len(view), samples=len(keys), sha256=sha256)
    return shard, keys, np.array(records, WEB_RECORD), skipped


def read_members(data: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """Returns key, and bytes by extension, of a sample's bytes. Interprets, and unpickles, nothing."""
    own: list[tuple[str, str, bytes]] = []
    system: list[tuple[str, str, bytes]] = []
    for member in members(data, where, part=True):
        parts = key_and_extension(member.name)
        if parts is not None:
            files = system if is_system_file(member.name) else own
            files.append((*parts, data[member.offset : member.offset + member.size]))
    found = own or system  # indexes of version 0.1.0 have samples of system files
    return (found[-1][0] if found else ""), {extension: body for _, extension, body in found}


def open_webdataset_index(source: str | Store) -> WebDatasetIndex:
    """Opens the index at a URL or in a store, by one GET. Raises DatasetError for a missing or damaged one."""
    store = source if isinstance(source, Store) else open_store(source)
    where = f"{store.url}/{WEB_INDEX_JSON}"
    again = f"make it again with `sage-scale shards index` (and --out {quote(store.url)}, if the tars lie elsewhere)"
    try:
        data = store.get(WEB_INDEX_JSON)
    except NotFound:
        raise DatasetError(
            f"{store.url} has no {WEB_INDEX_JSON}: make it with `sage-scale shards index {quote(store.url)}`"
        ) from None
    try:
        values, digest = parse_checksummed_json(data)
        if (values["format"], values["version"]) != (WEB_FORMAT, WEB_VERSION):
            raise DatasetError(f"{where} is of another format or version: {again}")
        records = np.frombuffer(binascii.a2b_base64(values["records"]), WEB_RECORD)
        unpacked = zlib.decompressobj().decompress(binascii.a2b_base64(values["keys"]), _MAX_KEYS_BYTES)
        keys = tuple(unpacked.decode().split("\n"))
        shards = tuple(build(IndexedTar, shard) for shard in values["shards"])
        if not len(records) == len(keys) == values["samples"] == sum(shard.samples for shard in shards):
            raise ValueError("counts differ")
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error):
        raise DatasetError(f"{where} is damaged: {again}") from None
    tars = values["tars"] or store.url
    return WebDatasetIndex(url=store.url, tars=tars, shards=shards, records=records, keys=keys, digest=digest)


def verify_webdataset(
    index: WebDatasetIndex, *, threads: int = 4, progress: ProgressCallback | None = None
) -> list[str]:
    """Reads every tar and compares it with the index. Returns problems, one line each, naming tar and sample."""
    tars = open_store(index.tars)
    ends = np.cumsum([shard.samples for shard in index.shards]).tolist()
    found = map_threads(
        lambda part: _compare(tars, part[0], index, range(part[1] - part[0].samples, part[1])),
        zip(index.shards, ends),
        threads=threads,
        progress=progress,
        size=lambda part: part[0].bytes,
    )
    known = {shard.name for shard in index.shards}
    more = [entry.name for entry in tars.list() if entry.name.endswith(".tar") and entry.name not in known]
    problems = [problem for some in found for problem in some]
    return problems + [f"{tars.url}/{name} is not in the index: it is stale" for name in more]


def _compare(tars: Store, shard: IndexedTar, index: WebDatasetIndex, rows: range) -> list[str]:
    where, problems = f"{tars.url}/{shard.name}", []
    try:
        with map_tar(tars, shard.name) as view:
            for row in rows:
                start, length = int(index.records[row]["offset"]), int(index.records[row]["length"])
                if start + length > len(view):
                    problems.append(f"{where}, sample {index.keys[row]}: it is missing, the tar was cut off")
                elif sample_hash(view[start : start + length]) != index.records[row]["hash"].tobytes():
                    problems.append(
                        f"{where}, sample {index.keys[row]}: its bytes differ from the index's hash"
                    )
            if not problems and hashlib.sha256(view).hexdigest() != shard.sha256:
                problems.append(f"{where} differs from the index outside of its samples")
    except NotFound:
        problems.append(f"{where} is missing")
    except DatasetError as error:
        problems.append(str(error))
    return problems


def _samples(view: memoryview, where: str, skipped: SkippedMembers) -> Iterator[tuple[str, int, int]]:
    """Yields key, first byte and end of each sample. Raises DatasetError for an extension that occurs twice in one."""
    key, start, end = "", -1, -1
    extensions: set[str] = set()
    before: dict[str, set[str]] = {}

    def whole() -> tuple[str, int, int]:
        known = before.setdefault(key, set())
        if known:
            skipped.add(AGAIN if known & extensions else TORN, key)
        known |= extensions
        return key, start, end

    for member in members(view, where, skipped=skipped):
        if is_system_file(member.name):
            skipped.add("file that an operating system left behind", member.name)
            continue
        parts = key_and_extension(member.name)
        if parts is None:
            skipped.add("member without key and extension", member.name)
            continue
        if start >= 0 and parts[0] != key:
            yield whole()
            start = -1
        if start < 0:
            key, start, extensions = parts[0], member.start, set()
        if parts[1] in extensions:
            raise DatasetError(f"{where}, sample {key}: member '{member.name}' occurs twice")
        extensions.add(parts[1])
        end = member.end
    if start >= 0:
        yield whole()
