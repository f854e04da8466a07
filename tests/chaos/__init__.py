"""Proofs by fault: each module has one promise broken at, many times, from a seed.

A module has ``run(count, dice)``: it raises where the promise does not hold, and returns figures.
``make test`` runs each with a small count; the long forms are run by ``python -m tests.chaos``.
"""
