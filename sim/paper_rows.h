// SPDX-License-Identifier: Apache-2.0
// The paper's numbers, a row each. No guard: paper.c includes it into its table.
// ROW(figure, quantity, paper, class, rule, case a, case b, reason where it is beyond 10 %)
ROW("14", "InstA / FlexGen, batch 64", 6.85, FITTED, SPEED, ONE(insta, 64), ONE(flexgen, 64), "")
ROW("14", "SparF / InstA, batch 256", 2.08, FITTED, SPEED, ONE(insta_sparf, 256), ONE(insta, 256),
    "")
ROW("14", "SparF (256) / FlexGen's best", 11.1, FITTED, SPEED, ONE(insta_sparf, 256),
    ONE(flexgen, 0), "")
ROW("14", "InstA (256) / DeepSpeed (16)", 1.046, FITTED, SPEED, ONE(insta, 256), ONE(deepspeed, 16),
    "")
ROW("5", "DeepSpeed, batch 16 / 32", 32.6, FITTED, SPEED, ONE(deepspeed, 16), ONE(deepspeed, 32),
    "")
ROW("18", "not KV access, InstA, batch 64", 0.193, FITTED, NOT_KV, ONE(insta, 64), NONE, "")
ROW("19", "not KV access, SparF, batch 64", 0.177, FITTED, NOT_KV, ONE(insta_sparf, 64), NONE, "")
ROW("18", "not KV access, FlexGen, batch 64", 0.0106, FITTED, NOT_KV, ONE(flexgen, 64), NONE, "")
ROW("19", "not KV access, FlexGen-SparQ, batch 64", 0.076, FITTED, NOT_KV, ONE(flexgen_sparq, 64),
    NONE, "")
ROW("18", "KV access, InstA, batch 64", 0.807, IMPLIED, KV, ONE(insta, 64), NONE, "")
ROW("19", "KV access, SparF, batch 64", 0.823, IMPLIED, KV, ONE(insta_sparf, 64), NONE, "")
ROW("4", "KV access, FlexGen, batch 64", 0.989, IMPLIED, KV, ONE(flexgen, 64), NONE, "")
ROW("19", "KV access, FlexGen-SparQ, batch 64", 0.924, IMPLIED, KV, ONE(flexgen_sparq, 64), NONE,
    "")
ROW("18", "not KV access, InstA, 2 drives", 0.236, HELD_OUT, NOT_KV, TWO(insta, 64), NONE, "")
ROW("19", "not KV access, SparF, 2 drives", 0.260, HELD_OUT, NOT_KV, TWO(insta_sparf, 64), NONE, "")
ROW("18", "KV access left of FlexGen's, InstA", 0.119, IMPLIED, KV_LEFT, ONE(insta, 64),
    ONE(flexgen, 64), "")
ROW("18", "KV access left of FlexGen's, InstA, 2 drives", 0.060, HELD_OUT, KV_LEFT, TWO(insta, 64),
    ONE(flexgen, 64), "")
ROW("15", "2 drives: InstA (256) / FlexGen (32)", 10.5, HELD_OUT, SPEED, TWO(insta, 256),
    TWO(flexgen, 32), "")
ROW("15", "2 drives: SparF (256) / FlexGen-SparQ (32)", 3.11, ASSUMED, SPEED, TWO(insta_sparf, 256),
    TWO(flexgen_sparq, 32), "")
ROW("20", "20 drives / 1, InstA, batch 256", 8.99, ASSUMED, SPEED, MANY(insta), ONE(insta, 256), "")
ROW("20", "20 drives / 1, SparF, batch 256", 7.29, ASSUMED, SPEED, MANY(insta_sparf),
    ONE(insta_sparf, 256),
    "excludes the row above: one serial time for both modes would allow SparF a gain of 1.42 on "
    "one drive, not 2.08; what brings it closer makes InstA worse")
ROW("16", "OPT-30B, 2 GPUs: InstA (128) / FlexGen (8)", 4.09, ASSUMED, SPEED, LARGE(insta, 128),
    LARGE(flexgen, 8), "")
ROW("16", "OPT-30B, 2 GPUs: SparF (128) / FlexGen (8)", 9.39, ASSUMED, SPEED,
    LARGE(insta_sparf, 128), LARGE(flexgen, 8),
    "asks for phi = 0.43 here, as the paper's gain over InstA is 2.30; 0.49, runs of 5.5 tokens "
    "where 4.6 were measured, is within 10 %; the one phi in the paper is OPT-13B's, 0.527")
ROW("17", "Llama-2-13B: InstA (128) / FlexGen (16)", 5.68, HELD_OUT, SPEED, LLAMA(insta, 128),
    LLAMA(flexgen, 16), "")
ROW("17", "Llama-2-13B: SparF (128) / FlexGen (16)", 12.48, HELD_OUT, SPEED,
    LLAMA(insta_sparf, 128), LLAMA(flexgen, 16),
    "asks for phi = 0.45 here, as the paper's gain over InstA is 2.20, OPT-13B's 2.08; 0.51, runs "
    "of 5 tokens, is within 10 %; the one phi in the paper is OPT-13B's, 0.527")
ROW("14", "FlexGen's best batch, OPT-13B", 32, HELD_OUT, BEST, ONE(flexgen, 0), NONE, "")
ROW("17", "FlexGen's best batch, Llama-2-13B", 16, HELD_OUT, BEST, LLAMA(flexgen, 0), NONE, "")
ROW("16", "FlexGen's best batch, OPT-30B", 8, HELD_OUT, BEST, LARGE(flexgen, 0), NONE, "")
ROW("15", "FlexGen-SparQ's best batch", 32, ASSUMED, BEST, TWO(flexgen_sparq, 0), NONE,
    "K stored twice no longer fits the page cache at 32; it does if K is stored once")
ROW("14", "FlexGen out of memory at", 128, ASSUMED, OOM, ONE(flexgen, 0), NONE, "")
ROW("14", "SparF / Recompute, 256, lock step", 1.713, ASSUMED, SPEED, ONE(insta_sparf, 256),
    ONE(recompute, 256), "")
ROW("14", "SparF / Recompute, 256, queueing", 1.713, HELD_OUT, SPEED, ONE(insta_sparf, 256),
    ONE(queueing, 256),
    "what vLLM does: sequences that do not fit wait, none is computed again; no GPU is slow enough "
    "for the paper's figure")
ROW("17", "Llama-2-13B: Recompute (128) / FlexGen (16)", 9.26, ASSUMED, SPEED,
    LLAMA(recompute, 128), LLAMA(flexgen, 16),
    "asks for another interval of recomputation than OPT-13B's 1.713 does; the paper names no "
    "batch")
ROW("Table I", "GeMV of 16 tokens, us", 0.32, IMPLIED, GEMV_US, ONE(insta, 64), NONE, "")
ROW("Table I", "filter of 16 pages, us", 37, IMPLIED, FILTER_US, ONE(insta, 64), NONE, "")
ROW("Table I", "GFLOPS of the engine", 650, ASSUMED, GFLOPS, ONE(insta, 64), NONE,
    "six units of 12.7 are 76, which is also what the shares of a step show; 900 DSPs at 285 MHz "
    "cannot do more than 513")
ROW("Table III", "prefill writes of a layer, GB, K once", 1.342, IMPLIED, FILL,
    ONE(insta_sparf, 64), NONE, "")
ROW("Table III", "decode writes of a layer, GB", 1.93, HELD_OUT, WRITES, ONE(insta_sparf, 64), NONE,
    "")
ROW("Table III", "decode reads of a layer, GB", 1085.65, ASSUMED, READS, ONE(insta_sparf, 64), NONE,
    "")
ROW("Table III", "phi: those over dense attention's", 0.527, ASSUMED, PHI, ONE(insta_sparf, 64),
    NONE, "")
ROW("Table III", "read rate of decode, GB/s", 7.66, HELD_OUT, READ_RATE, ONE(insta_sparf, 64), NONE,
    "phi, shares and gain give this rate; 7.66 would need flash channels at 83 % and then other "
    "shares")
ROW("22", "slowdown when worst pages are read twice", 0.0047, IMPLIED, RETRY, ONE(insta, 64), NONE,
    "")
ROW("endurance", "tokens, 4 drives, K once", 3.2264e10, HELD_OUT, ONCE,
    CASE(insta_sparf, "opt-13b", 64, 4, 1), NONE, "")
ROW("endurance", "tokens, 4 drives, K twice", 3.2264e10, HELD_OUT, ENDURANCE,
    CASE(insta_sparf, "opt-13b", 64, 4, 1), NONE,
    "the paper counts K once although SparF writes it twice, and TB as 2^40")
