"""S3 over real HTTP: a store in a process of its own, and a proxy that injects faults."""
