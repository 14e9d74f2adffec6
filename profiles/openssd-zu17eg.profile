instinfer profile 1
# The board of the paper's prototype (arXiv 2409.04992): Daisyplus OpenSSD with a Zynq UltraScale+
# ZU17EG. The paper says nothing about its NAND: the numbers are those of Cosmos+ OpenSSD, the
# board before it, as its public firmware and controller (Tiger4) have them, where not said
# otherwise.

[flash]
channels = 8            # Cosmos+ firmware: 8 channels
bus = 200 MB/s          # Cosmos+: NAND interface of 100 MHz, both edges
page = 16 KiB           # Cosmos+ firmware: data region of a page
dies = 8                # Cosmos+ firmware: 8 ways
planes = 1              # Cosmos+ firmware: a LUN is driven as one plane
pages_per_block = 256   # Cosmos+ firmware: pages of an MLC block
size = 1 TB             # assumed
read = 75 us            # assumed: MQSim's sample configuration for MLC
program = 750 us        # assumed: the same
erase = 3.8 ms          # assumed: the same
command = 1 us          # assumed: issued by a soft core for each page
registers = 1           # assumed: no cache reads in Tiger4
suspends = 0            # Tiger4 has no suspend

[wear]
endurance = 3000        # the paper: P/E cycles
bad_blocks = 1 %        # assumed: boards for research carry a bad block table of some size
grown_bad = 1 %         # assumed
spare_blocks = 4 %      # assumed
retries_fresh = 0       # assumed
retries_worn = 0.0047   # the paper: at worst 0.47 % slower after retention is relaxed
retries_aged = 1        # assumed: data as old as `retention` is read twice
retention = 30 days     # assumed
