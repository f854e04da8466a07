"""Unit and property tests: one room or module a file, in process wherever that says as much."""
