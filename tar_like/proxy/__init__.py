"""The receiving side.

    offer:     index body > validate > transfers/ID/index.db
    negotiate: index against ledger and destination > plan.db
    block:     decode (bounded) > verify digest > stage (pwrite, by number) > receipt
    commit:    verify staged files > metadata > syncfs > rename > syncfs > ledger

All state is files below DEST/.tar_like, so several proxies may serve one destination. Each
process appends to receipt logs of its own; what is true is the union.
Not guaranteed: anything about names the index does not list; they are left alone.
"""
