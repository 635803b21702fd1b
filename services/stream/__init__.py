"""The way from shards to a trainer's batches: plan -> fetch -> augment -> ordered whole batches.

`fetch` and `augmentation` hold the work itself and know nothing of Ray; `pipeline` and `actors`
spread it over a cluster, `loader` hands it to a trainer with a position that can be saved and taken
up again, and `opening` is the door to it, also for a loop of one's own (docs/own-loop.md).
"""
