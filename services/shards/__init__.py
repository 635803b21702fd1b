"""Token datasets on storage: codec, Parquet layout, manifests, cache, readers and writers."""
