instinfer profile 1
# Samsung SmartSSD, first generation, 3.84 TB: an NVMe SSD and an FPGA (Kintex KU15P, 4 GB of DRAM)
# behind one PCIe 3.0 x4 switch. All that the FPGA reads comes through the SSD's own port, which is
# no faster than the drive's: the case in which HILOS (ASPLOS 2026) says that one drive alone gains
# nothing. Sources: product brief ("brief"); Samsung's V-NAND of the fifth generation, July 2018
# ("V5").

[flash]
channels = 8            # assumed
bus = 1.4 GB/s          # V5: 1.4 Gbit/s per pin, 8 bits
page = 16 KiB           # assumed
spare = 1872 B          # assumed: as beside 16 KiB of Micron's MT29F128G08CBECB
dies = 8                # 3.84 TB and spares of 512 Gbit dies are 64, over 8 flash channels
planes = 2              # assumed
pages_per_block = 1024  # assumed: 16 MiB
size = 3.84 TB          # brief
read = 50 us            # V5
program = 500 us        # V5
erase = 3.8 ms          # assumed: MQSim's sample configuration
command = 200 ns        # assumed
registers = 2           # assumed
suspends = 4            # assumed
suspend = 20 us         # assumed
port = 3.3 GB/s         # brief: sequential read up to 3,300 MB/s, over PCIe 3.0 x4

[wear]
endurance = 3000        # assumed
bad_blocks = 0.2 %      # assumed
grown_bad = 0.5 %       # assumed
spare_blocks = 2 %      # assumed
retries_fresh = 0       # assumed
retries_worn = 0.0047   # assumed: as for InstCSD
retries_aged = 1        # assumed: data as old as `retention` is read twice
retention = 30 days     # assumed

# The engine of HILOS, whose units keep up with the port.
[engine]
kernels = 1             # assumed
gemv_units = 1          # assumed
gemv = 40 GFLOPS        # assumed: more than the port feeds at 8 query heads a KV head
softmax_units = 1       # assumed
softmax = 1000 MFLOPS   # assumed: never the limit
filter = 1.4 GB/s       # assumed: never the limit
argtopk = 285 MHz       # assumed
staging = 16 MiB        # assumed
overlap = 1             # assumed: a stream

[controller]
cores = 4               # assumed
lookup = 100 ns         # assumed
write = 2 GB/s          # brief: sequential write

[dram]
size = 4 GiB            # brief

[link]
rate = 3.3 GB/s         # brief
