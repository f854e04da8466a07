"""The plan: the extents the receiver lacks, laid end to end, and cut into blocks.

    files the receiver lacks > extents (holes left out) > offsets (layout.place) > plan.db
    block number > the pieces of extents that lie in it, with what a reader must know

The receiver makes the plan once for each transfer; senders fetch it. It never changes.
"""

from tar_like.plan.build import build_plan, build_whole_plan
from tar_like.plan.reader import Plan

__all__ = ["Plan", "build_plan", "build_whole_plan"]
