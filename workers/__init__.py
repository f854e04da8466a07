"""The workers: the only room that knows Redis and RQ. docs/fanout.md tells the whole.

    the uploading command                        a worker, on any host
    queue.RedisDispatcher                        crew.Crew: N processes, replaced when they die
    lead.Lead, tick by tick:                     worker.RangeWorker: RQ's loop
      what has arrived? (receivers)                a job is an Order, or refused (jobs)
      what has ended, who is dead? (board)         runtime.Runtime: index, plan, source, kept
      fill the queue (ranges)                      RangeSender.send, as everywhere
      tell how far it is (news)                    pulse.Pulse: alive, here, so fast (records)

Not guaranteed: that Redis keeps anything, and that a block is sent once. The receiver's receipts
are the truth, and blocks are idempotent.
"""
