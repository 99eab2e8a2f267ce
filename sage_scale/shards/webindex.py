"""An index of a WebDataset that others wrote: where each sample lies, and its hash. The tars are not touched.

One object, `sage-index.json`, beside the tars or elsewhere (then it names their place). It is one line of JSON that
begins with its own xxh3-128, as index.json of our datasets does; shards/README.md specifies it. A sample is what
webdataset makes of neighbouring members with the same key; its bytes reach from the first header that belongs to it
(extensions included) to the padding behind its last member.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from shlex import quote

import numpy as np

from sage_scale.errors import DatasetError, NoDataset, StorageError
from sage_scale.shards.anytar import BEHIND, Aside, key_and_extension, left_behind, members
from sage_scale.shards.sample import sample_hash
from sage_scale.shards.seal import seal, unseal
from sage_scale.shards.stored import stored_tar
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.untrusted.display import printable
from sage_scale.untrusted.files import text_fault
from sage_scale.untrusted.json_values import build

WEB_INDEX_JSON = "sage-index.json"
WEB_FORMAT, WEB_VERSION = "sage-scale-webdataset-index", 1
WEB_RECORD = np.dtype([("offset", "<u8"), ("length", "<u8"), ("hash", "u1", 16)])
TORN = "sample whose members do not stand side by side, which is read in pieces"
AGAIN = "sample whose key stands in the tar before"
ODD = (TORN, AGAIN, BEHIND)
"""What `Aside` counts of samples that are not set aside: they are read as webdataset reads them."""
_MAX_KEYS_BYTES = 1 << 34
"""Keys of one index, unpacked: more would be a trap for the memory."""


@dataclass(frozen=True, kw_only=True)
class WebShard:
    """One tar of the dataset."""

    name: str
    """Relative to the place of the tars; may have folders."""
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class WebIndex:
    """An opened index."""

    url: str
    """Where the index lies."""
    tars: str
    """Where the tars lie."""
    shards: tuple[WebShard, ...]
    records: np.ndarray
    """WEB_RECORD of all samples, shard after shard."""
    keys: tuple[str, ...]
    """Key of each sample."""
    digest: str
    """32 hex digits that change with any sample or shard."""

    @property
    def shard_of(self) -> np.ndarray:
        """int32: ordinal of each sample's shard."""
        return np.repeat(
            np.arange(len(self.shards), dtype=np.int32), [shard.samples for shard in self.shards]
        )


def make_web_index(
    tars: Store,
    out: Store | None = None,
    *,
    threads: int = 4,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[WebIndex, Aside]:
    """Read every tar of `tars` and store the index there, or in `out`. Gives the index and what was set aside.

    Raises DatasetError, naming tar and byte, for what cannot be read for certain, StorageError where the index cannot
    be stored.
    """
    names = [entry.name for entry in tars.list() if entry.name.endswith(".tar")]
    if not names:
        packed = [entry.name for entry in tars.list() if entry.name.endswith((".tar.gz", ".tgz", ".tar.zst"))]
        hint = (
            f"; {packed[0]} is compressed: unpack it first"
            if packed
            else ": give the folder or prefix they lie in"
        )
        raise NoDataset(f"{tars.url} holds no .tar{hint}")
    odd = next((name for name in names if text_fault(name)), "")
    if odd:
        raise DatasetError(f"{tars.url} holds '{printable(odd)}', whose name is not UTF-8: rename it")
    scanned: dict[str, tuple[WebShard, list[str], np.ndarray, Aside]] = {}
    read = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        jobs = {pool.submit(scan, tars, name): name for name in names}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                scanned[jobs[job]] = job.result()
                read += scanned[jobs[job]][0].bytes
                if progress:
                    progress(done, len(jobs), read)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    aside = Aside()
    for name in names:
        aside.update(scanned[name][3])
    keys = [key for name in names for key in scanned[name][1]]
    if not keys:
        raise DatasetError(f"{tars.url}: the tars hold no sample (no member with a name like key.extension)")
    records = np.concatenate([scanned[name][2] for name in names])
    data = seal(
        {
            "format": WEB_FORMAT,
            "version": WEB_VERSION,
            "tars": "" if out is None else tars.url,
            "shards": [asdict(scanned[name][0]) for name in names],
            "samples": len(keys),
            "record_bytes": WEB_RECORD.itemsize,
            "records": base64.b64encode(records.tobytes()).decode("ascii"),
            "keys": base64.b64encode(zlib.compress("\n".join(keys).encode(), 6)).decode("ascii"),
        }
    )
    place = out or tars
    try:
        place.put(WEB_INDEX_JSON, data)
    except StorageError as error:
        raise StorageError(
            f"{error} (--out puts the index elsewhere)" if out is None else str(error)
        ) from None
    return open_web_index(place), aside


def scan(tars: Store, name: str) -> tuple[WebShard, list[str], np.ndarray, Aside]:
    """What an index says of one tar: the shard, its keys and WEB_RECORDs, and what was set aside."""
    where, aside = f"{tars.url}/{name}", Aside(name)
    keys, records = [], []
    with stored_tar(tars, name) as view:
        for key, start, end in _samples(view, where, aside):
            keys.append(key)
            records.append((start, end - start, np.frombuffer(sample_hash(view[start:end]), np.uint8)))
        shard = WebShard(
            name=name, bytes=len(view), samples=len(keys), sha256=hashlib.sha256(view).hexdigest()
        )
    return shard, keys, np.array(records, WEB_RECORD), aside


def read_members(data: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """Key, and bytes by extension, of a sample's bytes; nothing in them is interpreted, let alone unpickled."""
    own: list[tuple[str, str, bytes]] = []
    left: list[tuple[str, str, bytes]] = []
    for member in members(data, where, part=True):
        parts = key_and_extension(member.name)
        if parts is not None:
            place = left if left_behind(member.name) else own
            place.append((*parts, data[member.offset : member.offset + member.size]))
    found = own or left  # indexes of version 0.1.0 have samples of what is left behind
    return (found[-1][0] if found else ""), {extension: body for _, extension, body in found}


def open_web_index(place: str | Store) -> WebIndex:
    """The index at a place, by one GET. Raises DatasetError where there is none, or a damaged one."""
    store = place if isinstance(place, Store) else open_store(place)
    where = f"{store.url}/{WEB_INDEX_JSON}"
    again = f"make it again with `sage-scale shards index` (and --out {quote(store.url)}, if the tars lie elsewhere)"
    try:
        data = store.get(WEB_INDEX_JSON)
    except NotFound:
        raise DatasetError(
            f"{store.url} has no {WEB_INDEX_JSON}: make it with `sage-scale shards index {quote(store.url)}`"
        ) from None
    body, digest = unseal(data)
    if body is None:
        raise DatasetError(f"{where} is damaged: {again}")
    try:
        values = json.loads(data)  # sealed, as index.json
        if (values["format"], values["version"]) != (WEB_FORMAT, WEB_VERSION):
            raise DatasetError(f"{where} is of another format or version: {again}")
        records = np.frombuffer(binascii.a2b_base64(values["records"]), WEB_RECORD)
        unpacked = zlib.decompressobj().decompress(binascii.a2b_base64(values["keys"]), _MAX_KEYS_BYTES)
        keys = tuple(unpacked.decode().split("\n"))
        shards = tuple(build(WebShard, shard) for shard in values["shards"])
        if not len(records) == len(keys) == values["samples"] == sum(shard.samples for shard in shards):
            raise ValueError("counts differ")
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error):
        raise DatasetError(f"{where} is damaged: {again}") from None
    return WebIndex(
        url=store.url,
        tars=values["tars"] or store.url,
        shards=shards,
        records=records,
        keys=keys,
        digest=digest,
    )


def verify_web_index(
    index: WebIndex, *, threads: int = 4, progress: Callable[[int, int, int], None] | None = None
) -> list[str]:
    """Read every tar again and compare it with the index; problems, one line each, naming tar and sample."""
    tars = open_store(index.tars)
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in index.shards])]).astype(int)
    found: dict[int, list[str]] = {}
    read = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        jobs = {
            pool.submit(_compare, tars, shard, index, int(starts[i]), int(starts[i + 1])): i
            for i, shard in enumerate(index.shards)
        }
        for done, job in enumerate(as_completed(jobs), start=1):
            found[jobs[job]] = job.result()
            read += index.shards[jobs[job]].bytes
            if progress:
                progress(done, len(jobs), read)
    known = {shard.name for shard in index.shards}
    more = [entry.name for entry in tars.list() if entry.name.endswith(".tar") and entry.name not in known]
    problems = [problem for i in sorted(found) for problem in found[i]]
    return problems + [f"{tars.url}/{name} is not in the index: it is stale" for name in more]


def _compare(tars: Store, shard: WebShard, index: WebIndex, begin: int, end: int) -> list[str]:
    where, problems = f"{tars.url}/{shard.name}", []
    try:
        with stored_tar(tars, shard.name) as view:
            for row in range(begin, end):
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


def _samples(view: memoryview, where: str, aside: Aside) -> Iterator[tuple[str, int, int]]:
    """Key, first byte and end of each sample. Raises DatasetError for an extension that occurs twice in one."""
    key, start, end = "", -1, -1
    extensions: set[str] = set()
    before: dict[str, set[str]] = {}

    def whole() -> tuple[str, int, int]:
        known = before.setdefault(key, set())
        if known:
            aside.add(AGAIN if known & extensions else TORN, key)
        known |= extensions
        return key, start, end

    for member in members(view, where, aside=aside):
        if left_behind(member.name):
            aside.add("file that an operating system left behind", member.name)
            continue
        parts = key_and_extension(member.name)
        if parts is None:
            aside.add("member without key and extension", member.name)
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
