"""How fast is tar-like, next to the tools people use today? See bench/README.md.

    for each work (data set, destination):
        warm the page cache
        for each round: for each tool in rotation: empty destination -> timed run -> remove
        first round only: the destination must equal the source
    print ratios of tar-like to each peer, paired round by round

Not guaranteed: numbers that hold on another machine. Run it on yours.
"""
