"""A dataset that is asked for and does not stand: what does is named, and what was likely meant."""

from __future__ import annotations

import re
import uuid

import pytest

from services.errors import NotFoundError
from services.shards.manifest import as_one_dataset, commit, list_versions, load_manifest
from services.shards.store import Store, open_store


def test_what_does_not_stand_is_named_with_what_does(root: Store, make_manifest) -> None:
    for version in (None, 1):
        with pytest.raises(NotFoundError, match=r"there is no folder .* holds the datasets"):
            load_manifest(root, "ds", version)
    root.write("other/file", b"")
    for version in (None, 1):
        with pytest.raises(NotFoundError, match=r"none: give the folder, .* holds the datasets"):
            load_manifest(root, "ds", version)
    commit(root, make_manifest(root, []))
    with pytest.raises(NotFoundError, match="there are: ds"):
        load_manifest(root, "other")
    for version in (None, 1):
        own = f"none, as it is the folder of one dataset: .* holds it, {re.escape(root.url)}$"
        with pytest.raises(NotFoundError, match=own):
            load_manifest(root.child("ds"), "ds", version)
    with pytest.raises(NotFoundError, match=r"no version 7; there are: \[1\]"):
        load_manifest(root, "ds", 7)
    assert list_versions(root, "other") == []


def test_a_bucket_that_is_one_dataset_is_said_to_be_in_no_folder(make_manifest) -> None:
    bucket = open_store(f"memory://{uuid.uuid4().hex}")
    commit(bucket, make_manifest(bucket, []))
    assert as_one_dataset(bucket) == ""
    assert as_one_dataset(bucket.child("ds")).endswith(f"holds it, {bucket.url}")
    bucket.write("versions/00000001.json", b"")
    assert as_one_dataset(bucket).endswith("give the folder that holds it")
