"""Large objects to S3 in parts, several at a time: visible when all have arrived and only if nobody was first."""

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
from modelhub_sdk.blobs.room import SENDING

_PART = 5 << 20  # bytes; S3 takes no smaller parts, and 10,000 of them
_PARTS = 9_000
_AHEAD = 4  # parts of one object under way
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
    if there is none. What was sent is thrown away after any error, Ctrl-C too. *limit* says how many
    seconds so many bytes may take.
    """
    bucket, name, _ = fs.split_path(key)
    target = {"Bucket": bucket, "Key": name}
    upload_id = fs.call_s3("create_multipart_upload", **target, timeout=limit(0))["UploadId"]
    target["UploadId"] = upload_id
    under_way: list[tuple[Future[Any], int]] = []
    parts: list[dict[str, Any]] = []
    part_size = max(_PART, -(-size // _PARTS))
    room = 2 * part_size  # the driver, and the allocator, keep some of it once more
    hasher = hashlib.sha256()

    def landed() -> None:
        future, count = under_way.pop(0)
        try:
            parts.append({"PartNumber": len(parts) + 1, "ETag": future.result()["ETag"]})
        finally:
            SENDING.give(room)
        if progress is not None:
            progress(count)

    try:
        number = 0
        while True:
            while len(under_way) >= _AHEAD or not SENDING.take(room, wait=not under_way):
                landed()  # our own parts make room, before we wait for others
            try:
                data = _filled(reader, part_size)
            except BaseException:
                SENDING.give(room)
                raise
            hasher.update(data)
            if not data:
                SENDING.give(room)
                break
            number += 1
            sent = fs._call_s3("upload_part", **target, PartNumber=number, Body=data)
            future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(sent, limit(len(data))), fs.loop)
            under_way.append((future, len(data)))
            del data
        while under_way:
            landed()
        reader.finish()
        check("sha256:" + hasher.hexdigest())
        match = {"IfNoneMatch": "*"} if create else {}
        fs.call_s3(
            "complete_multipart_upload", **target, MultipartUpload={"Parts": parts}, **match, timeout=limit(0)
        )
        fs.invalidate_cache(key)
    except BaseException:
        for future, _ in under_way:
            future.cancel()
            SENDING.give(room)
        _aborted(fs, bucket, name, upload_id)
        raise


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


__all__ = ["sweep", "upload"]
