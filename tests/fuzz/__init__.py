"""Fuzzing: the targets, and how they are run for long (python -m tests.fuzz)."""
