instinfer profile 1
# The host of the paper's testbed: Xeon Gold 5320 with 96 GB of DDR4.

[host]
memory = 96 GB            # the paper
system = 6 GB             # assumed: of it, never a page cache
