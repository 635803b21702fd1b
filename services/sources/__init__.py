"""Where an ingest's pictures come from: class folders, plain folders, tars, Parquet files."""
