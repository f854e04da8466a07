"""The workers: the only room that knows Redis and RQ."""
