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
