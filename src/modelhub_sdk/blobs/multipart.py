"""Large objects to S3 in parts, several at a time: visible when all have arrived and only if nobody was first.

The key is the digest of the bytes, so parts that an interrupted upload of a key left are parts of ours: the next one
goes on with them, each compared with what would be sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from modelhub_sdk.blobs import disk
from modelhub_sdk.blobs.disk import Progress, Reader
from modelhub_sdk.blobs.driver import precondition
from modelhub_sdk.blobs.room import SENDING
from modelhub_sdk.errors import Conflict

_PART = 5 << 20  # bytes; S3 takes no smaller parts, and 10,000 of them
_PARTS = 9_000
_AHEAD = 4  # parts of one object under way
_RESUMED = 64 << 20  # bytes from which on an interrupted upload is worth going on with: parts are paid for
_ABANDONED = 7 * 24 * 3600.0  # seconds after which nobody is at an upload any more

Limit = Callable[[int], float]

log = logging.getLogger(__name__)


def upload(
    fs: Any,
    key: str,
    reader: Reader,
    size: int,
    check: Callable[[str], None],
    limit: Limit,
    *,
    create: bool,
    progress: Progress | None,
) -> None:
    """Send what *reader* gives, *size* bytes, as the object *key* of an s3fs driver, hashing on the way.

    *check* is called with the digest before the object becomes visible. With *create* it becomes visible only
    if there is none. What was sent of a large one stays after an error or Ctrl-C, for the next upload of this
    key; otherwise it is thrown away. *limit* says how many seconds so many bytes may take.
    """
    bucket, name, _ = fs.split_path(key)
    target = {"Bucket": bucket, "Key": name}
    large = size >= _RESUMED
    upload_id, there = _left(fs, target) if large else (None, {})
    adopted = upload_id is not None  # perhaps of a process that lives: then it is not ours to throw away
    if upload_id is None:
        upload_id = fs.call_s3("create_multipart_upload", **target, timeout=limit(0))["UploadId"]
    target["UploadId"] = upload_id
    under_way: list[tuple[int, Future[Any], int]] = []
    parts: dict[int, str] = {}
    length = part_size(size)
    room = 2 * length  # the driver, and the allocator, keep some of it once more
    hasher = hashlib.sha256()
    useful, first = large, ""

    def landed() -> None:
        nonlocal useful
        number, future, count = under_way.pop(0)
        try:
            parts[number] = future.result()["ETag"]
        finally:
            SENDING.give(room)
        if number == 1 and parts[1] != first:  # ETags that say nothing of the bytes: nobody can go on
            useful = False
        if progress is not None:
            progress(count)

    try:
        number = 0
        while True:
            while len(under_way) >= _AHEAD or not SENDING.take(room, wait=not under_way):
                landed()  # our own parts make room, before we wait for others
            try:
                data = _filled(reader, length)
            except BaseException:
                SENDING.give(room)
                raise
            hasher.update(data)
            number += 1
            if large and number == 1:
                first = _etag(data)
                if adopted and there.get(1) != first:
                    # Of other bytes, or of a store whose ETags say nothing: two who sent the same parts of one
                    # upload would spoil each other's list of them, again and again.
                    there = {}
                    try:
                        begun = fs.call_s3("create_multipart_upload", **_key(target), timeout=limit(0))
                    except BaseException:
                        SENDING.give(room)
                        raise
                    upload_id, adopted = begun["UploadId"], False
                    target["UploadId"] = upload_id
            if not data or (number in there and there[number] == _etag(data)):
                SENDING.give(room)
                if not data:
                    break
                parts[number] = there[number]
                if progress is not None:
                    progress(len(data))
                continue
            sent = fs._call_s3("upload_part", **target, PartNumber=number, Body=data)
            future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(sent, limit(len(data))), fs.loop)
            under_way.append((number, future, len(data)))
            del data
        while under_way:
            landed()
        reader.finish()
        again, useful = useful, False  # of other bytes than these nobody goes on with them
        check("sha256:" + hasher.hexdigest())
        listed = [{"PartNumber": n, "ETag": parts[n]} for n in sorted(parts)]
        match = {"IfNoneMatch": "*"} if create else {}
        try:
            fs.call_s3(
                "complete_multipart_upload",
                **target,
                MultipartUpload={"Parts": listed},
                **match,
                timeout=limit(0),
            )
        except Exception as exc:
            useful = again and not (isinstance(exc, FileExistsError) or precondition(exc))
            raise
        fs.invalidate_cache(key)
    except BaseException as exc:
        for _, future, _ in under_way:
            future.cancel()
            SENDING.give(room)
        if not adopted and (not (useful and parts) or isinstance(exc, Conflict)):
            _aborted(fs, bucket, name, upload_id)
        if isinstance(exc, FileNotFoundError):  # somebody finished it, or threw it away: look, and begin anew
            raise ConnectionError("the upload is gone") from exc
        raise


def part_size(size: int) -> int:
    """Return in parts of how many bytes an object of *size* bytes is sent."""
    return max(_PART, -(-size // _PARTS))


def _key(target: dict[str, str]) -> dict[str, str]:
    return {name: target[name] for name in ("Bucket", "Key")}


def _left(fs: Any, target: dict[str, str]) -> tuple[str | None, dict[int, str]]:
    """Return the id of the newest upload of this key that nobody finished, with the ETags of its parts by number.

    Its process may be alive: both then send the same parts, and whoever comes second finds the object there.
    """
    try:
        found = fs.call_s3(
            "list_multipart_uploads", Bucket=target["Bucket"], Prefix=target["Key"], timeout=60
        )
        same = [one for one in found.get("Uploads") or () if one["Key"] == target["Key"]]
        if not same:
            return None, {}
        upload_id = max(same, key=lambda one: one["Initiated"])["UploadId"]
        parts: dict[int, str] = {}
        place: dict[str, int] = {}
        while True:
            listed = fs.call_s3("list_parts", **target, UploadId=upload_id, **place, timeout=60)
            parts |= {one["PartNumber"]: one["ETag"] for one in listed.get("Parts") or ()}
            if not listed.get("IsTruncated"):
                return upload_id, parts
            place = {"PartNumberMarker": int(listed["NextPartNumberMarker"])}
    except Exception as exc:  # noqa: BLE001  # whoever may not look begins anew
        log.debug("cannot look for an unfinished upload: %s", type(exc).__name__)
        return None, {}


def _etag(data: bytes) -> str:
    """Return the ETag of a part; where a store has another kind (encrypted by a key of its own) parts are sent again."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _filled(reader: Reader, count: int) -> bytes:
    """Return the next *count* bytes, fewer at the end."""
    whole = io.BytesIO()  # whose value is no second copy
    view = memoryview(bytearray(min(count, disk.CHUNK)))
    while (left := count - whole.tell()) and (got := reader.readinto(view[:left])):
        whole.write(view[:got])
    return whole.getvalue()


def _aborted(fs: Any, bucket: str, name: str, upload_id: str) -> None:
    try:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=name, UploadId=upload_id, timeout=10)
    except Exception:  # noqa: BLE001  # the first error is the one to tell; the store's own rules clean up
        return


def sweep(fs: Any, prefix: str, older_than: float | None) -> int:
    """Throw away the parts of uploads below *prefix* that killed processes left; return of how many uploads.

    By default those that began a week ago: parts are paid for, and no listing shows them. A store that does not
    let us look keeps them, as its own rules say.
    """
    bucket, name, _ = fs.split_path(prefix)
    before = time.time() - (_ABANDONED if older_than is None else older_than)
    count = 0
    place: dict[str, str] = {}
    try:
        while True:
            found = fs.call_s3(
                "list_multipart_uploads", Bucket=bucket, Prefix=f"{name}/", **place, timeout=60
            )
            for one in found.get("Uploads") or ():
                if one["Initiated"].timestamp() <= before and one["Key"].startswith(f"{name}/"):
                    _aborted(fs, bucket, one["Key"], one["UploadId"])
                    count += 1
            if not found.get("IsTruncated"):
                break
            place = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}
    except Exception as exc:  # noqa: BLE001  # tidying up: whoever may not list does without
        log.debug("cannot list unfinished uploads: %s", type(exc).__name__)
    return count


__all__ = ["part_size", "sweep", "upload"]
