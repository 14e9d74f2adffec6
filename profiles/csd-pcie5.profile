instinfer profile 1
# A drive that nobody sells: today's interface and NAND with an engine that keeps up with all flash
# channels. For the question when near-storage attention pays.

[flash]
channels = 16           # assumed: controllers of PCIe 5.0 drives have 8 to 16
bus = 2.4 GB/s          # assumed: ONFI 5.0 and Toggle 5.0, 2,400 MT/s
page = 4 KiB            # assumed: as instcsd-zynq7045
spare = 32 B            # assumed: as instcsd-zynq7045
dies = 8                # assumed: of a flash channel
planes = 4              # assumed
pages_per_block = 256   # assumed
size = 8 TB             # assumed
read = 40 us            # assumed
program = 400 us        # assumed
erase = 3.8 ms          # assumed
command = 100 ns        # assumed
registers = 2           # assumed
suspends = 4            # assumed
suspend = 20 us         # assumed

[wear]
endurance = 3000        # assumed
bad_blocks = 0.2 %      # assumed
grown_bad = 0.5 %       # assumed
spare_blocks = 2 %      # assumed
retries_fresh = 0       # assumed
retries_worn = 0.0047   # assumed: as for InstCSD
retries_aged = 1        # assumed
retention = 30 days     # assumed

[engine]
kernels = 2             # assumed
gemv_units = 16         # assumed
gemv = 20 GFLOPS        # assumed: 640 GFLOPS, 8 query heads a KV head at 38 GB/s take 300
softmax_units = 16      # assumed
softmax = 200 MFLOPS    # assumed: never the limit
filter = 2.4 GB/s       # assumed: as fast as the flash channel
argtopk = 1000 MHz      # assumed
staging = 16 MiB        # assumed
overlap = 1             # assumed: a stream

[controller]
cores = 8               # assumed
lookup = 50 ns          # assumed
write = 8 GB/s          # assumed

[dram]
size = 16 GiB           # assumed

[link]
rate = 14 GB/s          # assumed: PCIe 5.0 x4, as PCIe 5.0 drives read
