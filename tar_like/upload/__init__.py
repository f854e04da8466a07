"""The sending side.

    offer the index > negotiate the plan > which blocks are missing?
    block: source.read(pieces) > digests > encode (LZ4 while it helps) > PUT, with retries
    nothing missing > commit > report

``range.RangeSender`` moves a range of blocks and does not know who asked: the local pool
(``pool``), or a worker on another host.
Not guaranteed: progress of other senders of the same transfer is only seen between rounds.
"""
