instinfer profile 1
# InstCSD as the paper evaluates it: NVMeVirt with the latencies of a Zynq7045 engine and
# 8 flash channels of 1.4 GB/s (arXiv 2409.04992; HPCA 2025, pp. 1510-1525: "the paper").
# What the paper does not say about its NAND is that of the chip whose interface has this rate:
# Samsung's V-NAND of the fifth generation, 1.4 Gbit/s per pin ("V5", announced in July 2018).

[flash]
channels = 8            # the paper
bus = 1.4 GB/s          # the paper; 8 bits of V5
page = 4 KiB            # the paper: 16 tokens of a head of width 128
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
