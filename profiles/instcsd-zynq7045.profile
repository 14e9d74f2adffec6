instinfer profile 1
# InstCSD as the paper evaluates it: NVMeVirt with the latencies of a Zynq7045 engine and
# 8 flash channels of 1.4 GB/s (arXiv 2409.04992; HPCA 2025, pp. 1510-1525: "the paper").
# What the paper does not say about its NAND is that of the chip whose interface has this rate:
# Samsung's V-NAND of the fifth generation, 1.4 Gbit/s per pin ("V5", announced in July 2018).

[flash]
channels = 8            # the paper
bus = 1.4 GB/s          # the paper; 8 bits of V5
page = 4 KiB            # the paper: 16 tokens of a head of width 128
spare = 32 B            # assumed: what the FTL says of a page. The paper's rate is that of data
                        # (NVMeVirt moves nothing else), so ECC is left out
dies = 32               # of a flash channel, assumed: 16 of two planes that read independently;
                        # 18 keep 1.4 GB/s busy (1.4 GB/s * 50 us / 4 KiB = 17.1)
planes = 1              # see dies
pages_per_block = 256   # assumed: 1 MiB
size = 2 TB             # the paper: endurance of 4 drives of 2 TB
read = 50 us            # V5: "read signals 50 us"
program = 500 us        # V5: "data-write speed 500 us"
erase = 3.8 ms          # assumed: MQSim's sample configuration
command = 200 ns        # assumed: command and address cycles
registers = 2           # assumed: page and cache register, as ONFI's cache reads have them
suspends = 4            # assumed
suspend = 20 us         # assumed

[wear]
endurance = 3000        # the paper: P/E cycles
bad_blocks = 0.2 %      # assumed; data sheets of TLC allow about 2 % over the whole life
grown_bad = 0.5 %       # assumed
spare_blocks = 2 %      # assumed
retries_fresh = 0       # assumed
retries_worn = 0.0047   # the paper: at worst 0.47 % slower after retention is relaxed
retries_aged = 1        # assumed: data as old as `retention` is read twice
retention = 30 days     # assumed

# What the units compute on and the pages that the flash channels bring share the drive's DRAM; one
# softmax unit for each GeMV unit. Neither is said; the shares of a step in the paper ask for it.
[engine]
kernels = 2             # the paper, figure 8
gemv_units = 3          # the paper, figure 8: of a kernel
gemv = 12.7 GFLOPS      # the paper, table I, measured: of a unit
softmax_units = 3       # assumed: of a kernel
softmax = 14.2 MFLOPS   # the paper, table I, read as elements: 164 us are then a row of 2,300
filter = 1.79 GB/s      # the paper, table I: of a flash channel
argtopk = 285 MHz       # the paper: clock of the prototype; assumed: one element each
staging = 2 MiB         # assumed: block RAM of a Zynq7045, 19 Mbit
overlap = 0             # assumed: 0, pages wait while the units compute; 1, they do not

[controller]
cores = 4               # the paper: ARM cores of the board
lookup = 100 ns         # assumed: of a core, to find one page
write = 3.78 GB/s       # the paper, table III: rate of prefill's writes

[dram]
size = 2 GiB            # the paper: of the board

[link]
rate = 7 GB/s           # the paper: PCIe 4.0 x4 of the virtual drive
