instinfer profile 1
# Samsung 980 PRO, 2 TB: the SSD of the paper's baselines. Sources: its data sheet ("sheet");
# Samsung's announcement of V-NAND of the sixth generation, August 2019 ("V6"); "A 512Gb 3b/cell 3D
# 6th-generation V-NAND flash memory with 82MB/s write throughput and 1.2Gb/s interface",
# ISSCC 2019 ("ISSCC").

[flash]
channels = 8            # Samsung Elpis controller, reviews
bus = 1.2 GB/s          # ISSCC: 1.2 Gbit/s per pin, 8 bits
page = 16 KiB           # assumed, as in V-NAND of earlier generations
spare = 1872 B          # assumed: as beside 16 KiB of Micron's MT29F128G08CBECB
dies = 4                # 2 TB of 512 Gbit dies (ISSCC) are 32, over 8 flash channels
planes = 2              # assumed
pages_per_block = 1024  # assumed: 16 MiB
size = 2 TB             # sheet
read = 45 us            # V6: "less than 45 us"
program = 400 us        # ISSCC: 82 MB/s of a die are 2 planes of 16 KiB in 400 us
erase = 3.8 ms          # assumed: MQSim's sample configuration
command = 200 ns        # assumed: command and address cycles
registers = 2           # assumed: page and cache register
suspends = 4            # assumed
suspend = 20 us         # assumed
port = 7 GB/s           # sheet: sequential read up to 7,000 MB/s

[wear]
endurance = 600         # sheet: 1,200 TB written over 2 TB
bad_blocks = 0.2 %      # assumed
grown_bad = 0.5 %       # assumed
spare_blocks = 2 %      # assumed
retries_fresh = 0       # assumed
retries_worn = 0.0047   # assumed: as for InstCSD
retries_aged = 1        # assumed: data as old as `retention` is read twice
retention = 30 days     # assumed
