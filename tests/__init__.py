"""Tests of tar-like."""
