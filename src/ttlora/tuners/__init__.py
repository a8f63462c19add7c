"""PEFT methods, a folder each; all are registered with PEFT when any of them is imported."""

from ttlora.tuners import bottleneck, loretta_rep, lorta, meta_tt, tt_lora

__all__ = ["bottleneck", "loretta_rep", "lorta", "meta_tt", "tt_lora"]
