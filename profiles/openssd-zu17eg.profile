instinfer profile 1
# The board of the paper's prototype (arXiv 2409.04992): Daisyplus OpenSSD with a Zynq UltraScale+
# ZU17EG. The paper says nothing about its NAND: the numbers are those of Cosmos+ OpenSSD, the
# board before it, as its public firmware and controller (Tiger4) have them, where not said
# otherwise.

[flash]
channels = 8            # Cosmos+ firmware: 8 channels
bus = 200 MB/s          # Cosmos+: NAND interface of 100 MHz, both edges
page = 16 KiB           # Cosmos+ firmware: data region of a page
spare = 1664 B          # Cosmos+ firmware: spare region of a row, of which ECC leaves 256
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

[engine]
kernels = 2             # the paper, figure 8
gemv_units = 3          # the paper, figure 8: of a kernel
gemv = 12.7 GFLOPS      # the paper, table I, measured: of a unit
softmax_units = 3       # assumed: of a kernel
softmax = 14.2 MFLOPS   # the paper, table I, read as elements: 164 us are then a row of 2,300
filter = 1.85 GB/s      # the paper, table I, measured: of a flash channel
argtopk = 285 MHz       # the paper: clock of the prototype; assumed: one element each
staging = 2 MiB         # assumed: block RAM of a Zynq7045, 19 Mbit
overlap = 0             # assumed, as for instcsd-zynq7045

[controller]
cores = 4               # the paper: ARM cores of the board
lookup = 100 ns         # assumed: of a core, to find one page
write = 1.3 GB/s        # assumed: 64 dies of 16 KiB in 750 us

[dram]
size = 2 GiB            # the paper: of the board

[link]
rate = 3.2 GB/s         # the paper: PCIe 3.0 x4; assumed: as copies see it
