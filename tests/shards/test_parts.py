"""Large objects of S3, which are put in parts."""

from __future__ import annotations

import fsspec
import pytest

from services.errors import NotFoundError, StoreError
from services.shards.parts import LARGE_BYTES, PART_BYTES
from services.shards.store import Store
from tests.shards.faulty_s3 import Fault, FaultyS3

BODY = bytes(range(256)) * (LARGE_BYTES // 256) + b"the last part is shorter"
PARTS = -(-len(BODY) // PART_BYTES)
UNTIL_END: list[Fault | None] = [None] * (1 + PARTS)  # the request that begins, and each part's


def under_way(faulty_s3: FaultyS3, bucket: str) -> int:
    """Uploads that are neither complete nor ended: their parts cost money until they are."""
    files = fsspec.filesystem("s3", endpoint_url=faulty_s3.url, skip_instance_cache=True)
    return len(files.list_multipart_uploads(bucket))


@pytest.mark.parametrize(
    ("faults", "more"),
    [([], 0), ([503], 1), ([None, 503, 500, 503], 3), ([*UNTIL_END, 503, "drop"], 2)],
)
def test_a_request_that_fails_is_made_again_alone(
    faulty_s3: FaultyS3, s3_bucket: str, s3_store: Store, faults: list[Fault | None], more: int
) -> None:
    faulty_s3.faults = list(faults)
    s3_store.write("large", BODY)
    assert faulty_s3.faults == []
    assert faulty_s3.requests == 1 + PARTS + 1 + more
    assert s3_store.read("large") == BODY
    assert under_way(faulty_s3, s3_bucket) == 0


def test_a_lost_answer_to_the_last_request_is_no_failure(
    faulty_s3: FaultyS3, s3_bucket: str, s3_store: Store
) -> None:
    """Asked again, some servers know no such upload any more; then all is put once more."""
    faulty_s3.faults = [*UNTIL_END, "reset", 404]
    s3_store.write("large", BODY)
    assert faulty_s3.faults == []
    assert s3_store.read("large") == BODY
    faulty_s3.faults = [*UNTIL_END, "reset", 404]
    assert s3_store.create("new", BODY)
    assert under_way(faulty_s3, s3_bucket) == 0


def test_what_fails_for_good_says_why_and_leaves_nothing(
    faulty_s3: FaultyS3, s3_bucket: str, s3_store: Store
) -> None:
    faulty_s3.faults = [*UNTIL_END, 403]
    with pytest.raises(StoreError, match="HTTP 403"):
        s3_store.write("large", BODY)
    assert under_way(faulty_s3, s3_bucket) == 0
    with pytest.raises(NotFoundError):
        s3_store.read("large")


def test_the_reason_is_told_where_the_role_may_not_end_an_upload(
    faulty_s3: FaultyS3, s3_store: Store
) -> None:
    faulty_s3.faults = [*UNTIL_END, *[503] * 6, 403]
    with pytest.raises(StoreError, match=r"failed 6 times.*503"):
        s3_store.write("large", BODY)
    assert faulty_s3.faults == []


def test_an_upload_that_is_ended_every_time_is_an_error(
    faulty_s3: FaultyS3, s3_store: Store
) -> None:
    faulty_s3.faults = [*UNTIL_END, 404] * 3
    with pytest.raises(StoreError, match="ended 3 times"):
        s3_store.write("large", BODY)


def test_create_is_exclusive(faulty_s3: FaultyS3, s3_bucket: str, s3_store: Store) -> None:
    assert s3_store.create("v", BODY)
    assert not s3_store.create("v", BODY[:-1])
    assert s3_store.read("v") == BODY
    assert under_way(faulty_s3, s3_bucket) == 0
