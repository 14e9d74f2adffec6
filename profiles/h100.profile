instinfer profile 1
# NVIDIA H100 80GB, SXM. Source of what is not said otherwise: its data sheet ("sheet").

[gpu]
memory = 80 GB            # sheet
bandwidth = 3350 GB/s     # sheet
bandwidth_share = 0.85    # assumed: what matrix-vector products reach of it
flops = 989 TFLOPS        # sheet: tensor cores, fp16, dense
flops_share = 0.65        # assumed: what large matrix products reach of it
link = 50 GB/s            # assumed: PCIe 5.0 x16 (sheet), as copies see it
usable = 0.9              # assumed: vLLM's default share of the memory
