"""Rotary frequencies as transformers computes them, for tests/unit/test_model.c.

Run: python generate.py > frequencies.json   (made with transformers 5.23, torch float32)
"""
import json
import sys

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA31 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=8192)
CASES = {
    "default": dict(hidden_size=64, rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "linear": dict(hidden_size=96,
                   rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=10000.0)),
    "llama3.1": dict(hidden_size=128, rope_parameters=dict(LLAMA31, rope_theta=500000.0)),
    "llama3.2": dict(hidden_size=64,
                     rope_parameters=dict(LLAMA31, factor=32.0, rope_theta=500000.0)),
    "short": dict(hidden_size=32, rope_parameters=dict(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=2.5,
        original_max_position_embeddings=64, rope_theta=1000.0)),
}

out = []
for name, case in CASES.items():
    config = LlamaConfig(num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1,
                         intermediate_size=8, vocab_size=8, max_position_embeddings=131072, **case)
    frequencies = [float(x) for x in LlamaRotaryEmbedding(config).inv_freq]
    new = dict(model_type="llama", num_attention_heads=1, **case)
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    scaling = dict(case["rope_parameters"])
    old["rope_theta"] = scaling.pop("rope_theta")
    old["rope_scaling"] = scaling if scaling["rope_type"] != "default" else None
    out.append(dict(name=name, configs=[new, old], frequencies=frequencies))
json.dump(out, sys.stdout, indent=1)
print()
