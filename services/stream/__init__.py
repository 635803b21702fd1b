"""The way from shards to a trainer's batches: plan -> fetch -> augment -> ordered whole batches.

`share` holds the work itself and knows nothing of Ray; `pipeline` and `actors` spread it over a
cluster, `loader` hands it to a trainer with a position that can be saved and taken up again.
"""
