"""A large object of S3, put in parts that are each tried again by themselves.

s3fs puts all parts again where one fails, so that gigabytes hardly get through a throttled bucket.
Where the answer to the last request is lost it ends the upload, which is complete by then, and says
that there is no such file; and where the role may not end one, that is all that is heard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from services.errors import NotFoundError, StoreError
from services.shards.threads import in_order

PART_BYTES = 16 << 20  # of at most 10,000 parts: objects of up to 160 GB
LARGE_BYTES = 2 * PART_BYTES
"""Objects from this size on are put in parts: one request would be long, and on one connection."""

_AT_A_TIME = 4
_UPLOADS = 3  # of one object: a second where the answer to the first one's end was lost


def put_parts(
    call: Callable[..., dict[str, Any]],
    patiently: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]],
    data: bytes,
    condition: Mapping[str, str],
) -> None:
    """Make the object of these bytes; it appears whole, with the last request.

    call: makes the named request of botocore's for the object. patiently: calls something, again
    where that may help; its errors are those of `Store`. condition: of the object's appearance.

    Raises: StoreError, also where the upload is ended by others each time; nothing of it is left
    where it can be removed.
    """
    for _ in range(_UPLOADS):
        upload = patiently(partial(call, "create_multipart_upload"))["UploadId"]
        part = partial(call, "upload_part", UploadId=upload)
        jobs = (
            partial(patiently, partial(part, PartNumber=number, Body=data[at : at + PART_BYTES]))
            for number, at in enumerate(range(0, len(data), PART_BYTES), 1)
        )
        try:
            tags = [answer["ETag"] for answer in in_order(jobs, _AT_A_TIME)]
            parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
            whole = {"MultipartUpload": {"Parts": parts}, "UploadId": upload, **condition}
            patiently(partial(call, "complete_multipart_upload", **whole))
        except NotFoundError:
            continue  # there is no such upload: complete, of which no answer came, or ended
        except BaseException:
            with contextlib.suppress(Exception):  # once: the storage, or the role, may not let us
                call("abort_multipart_upload", UploadId=upload)
            raise
        return
    raise StoreError(
        f"an upload in parts was ended {_UPLOADS} times before it was complete; nothing was "
        "written: see who, or which rule of the bucket, ends uploads under way, and try again"
    )
