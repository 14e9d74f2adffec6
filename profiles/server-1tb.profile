instinfer profile 1
# A server of today, for what goes beyond the paper.

[host]
memory = 1 TB             # assumed
system = 16 GB            # assumed: of it, never a page cache
