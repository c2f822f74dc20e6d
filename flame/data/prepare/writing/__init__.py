"""From documents to shards: split, shuffled and written as text, token ids or packed rows.

``scatter`` shares documents out to partitions, ``shard_plan`` decides which of them make a shard, ``gather`` sorts and
writes each shard: an external sort whose result does not depend on tasks, workers or restarts.
"""
