#!/usr/bin/env python3
"""Writes tiny.safetensors with the `safetensors` library, and tiny.txt: a line per tensor with its
name, its number of elements and the fp32 bits of each. Run in this folder."""
import torch
from safetensors.torch import save_file

inf = float("inf")
values = torch.tensor([0.0, -0.0, 1.0, -1.5, 3.14159265, 65504.0, -65504.0, 2.0**-14, 2.0**-24,
                       1e-3, 1 / 3, 1024.5, inf, -inf, -2.71828175])
tensors = {
    "f32.matrix": values.reshape(3, 5),
    "f32.vector": values.flip(0),
    "f16.matrix": values.half().reshape(5, 3),
    "bf16.matrix": values.bfloat16().reshape(1, 15),
    "bf16.vector": values.bfloat16()[3:6].clone(),
}
save_file(tensors, "tiny.safetensors", metadata={"format": "pt"})
with open("tiny.txt", "w") as out:
    for name, tensor in tensors.items():
        bits = tensor.float().flatten().view(torch.int32).tolist()
        print(name, len(bits), *(f"{b & 0xFFFFFFFF:08x}" for b in bits), file=out)
