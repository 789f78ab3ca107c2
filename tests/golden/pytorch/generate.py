#!/usr/bin/env python3
"""Twenty training steps of tiny models in PyTorch, as the oracle of tests/golden/test_pytorch.c.

For each model a folder with: config.json and model.safetensors (initial weights as transformers
writes them), gradient/model.safetensors (gradients of the first step, before clipping),
curve.json (tokens, options, loss and gradient norm of each step). See README.md for versions.

In bf16 (tests/parallel/bf16.py) the model is bfloat16() with an fp32 master of every parameter: each
step rounds the master into the model, and AdamW steps the master by the model's gradients.
"""
import copy
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OpenAIGPTConfig

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, BATCH, T, VOCAB = 20, 4, 16, 101
OPTIONS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}

COMMON = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0)
MODELS = {
    "gpt2": GPT2Config(n_embd=40, n_layer=2, n_head=5, n_positions=32, resid_pdrop=0.0,
                       embd_pdrop=0.0, attn_pdrop=0.0, **COMMON),
    # one FFN column: the second product's weight is a matrix that looks like a vector
    "gpt2-narrow": GPT2Config(n_embd=15, n_layer=2, n_head=3, n_inner=1, n_positions=32,
                              resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                              activation_function="gelu", tie_word_embeddings=False, **COMMON),
    "gpt2-scores": GPT2Config(n_embd=24, n_layer=3, n_head=2, n_inner=30, n_positions=32,
                              resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                              scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True,
                              **COMMON),
    "gpt1": OpenAIGPTConfig(n_embd=24, n_layer=2, n_head=3, n_positions=32, resid_pdrop=0.0,
                            embd_pdrop=0.0, attn_pdrop=0.0, vocab_size=VOCAB),
    "llama-gqa": LlamaConfig(hidden_size=48, intermediate_size=72, num_hidden_layers=2,
                             num_attention_heads=6, num_key_value_heads=2,
                             max_position_embeddings=64, tie_word_embeddings=False, **COMMON),
    "llama-tied": LlamaConfig(hidden_size=32, intermediate_size=56, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=1,
                              max_position_embeddings=128, tie_word_embeddings=True,
                              attention_bias=True, mlp_bias=True,
                              rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0,
                                               "factor": 8.0, "low_freq_factor": 1.0,
                                               "high_freq_factor": 4.0,
                                               "original_max_position_embeddings": 16}, **COMMON),
    "llama-bf16": LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                              num_attention_heads=2, num_key_value_heads=1, head_dim=64,
                              max_position_embeddings=64, tie_word_embeddings=False, **COMMON),
}


def sequence(tokens, g):
    n = (len(tokens) - 1) // T
    i = g % n
    return tokens[i * T:i * T + T + 1]


def perturb(model):
    """Biases and norms start at constants: random ones make every gradient count."""
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.data.add_(0.1 * torch.randn_like(p))
        else:
            p.data.mul_(3.0)


def unique(state):
    seen, out = set(), {}
    for name, t in state.items():
        if t.data_ptr() not in seen:
            seen.add(t.data_ptr())
            out[name] = t.detach().clone().contiguous()
    return out


def save_gradients(model, folder):
    os.makedirs(os.path.join(folder, "gradient"), exist_ok=True)
    save_file({n: p.grad.detach().clone() for n, p in model.named_parameters()},
              os.path.join(folder, "gradient", "model.safetensors"), metadata={"format": "pt"})


def train(name, config):
    torch.manual_seed(1234)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    perturb(model)
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(model.config.to_dict(), f, indent=1, sort_keys=True, default=str)
    save_file(unique(model.state_dict()), os.path.join(folder, "model.safetensors"),
              metadata={"format": "pt"})
    tokens = torch.randint(0, VOCAB, (BATCH * T * 6 + 1,)).tolist()
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": OPTIONS["weight_decay"]},
                             {"params": plain, "weight_decay": 0.0}], lr=OPTIONS["lr"],
                            betas=(OPTIONS["beta1"], OPTIONS["beta2"]), eps=OPTIONS["eps"])
    layers = copy.deepcopy(model).bfloat16() if name.endswith("bf16") else model
    pairs = list(zip(model.parameters(), layers.parameters()))
    losses, norms = [], []
    for step in range(STEPS):
        batch = torch.tensor([sequence(tokens, step * BATCH + b) for b in range(BATCH)])
        if layers is not model:
            for master, p in pairs:
                p.data.copy_(master.data)
        logits = layers(batch[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB),
                                                 batch[:, 1:].reshape(-1))
        layers.zero_grad()
        loss.backward()
        if layers is not model:
            for master, p in pairs:
                master.grad = p.grad.float()
        elif step == 0:
            save_gradients(model, folder)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS["clip"]).item())
        losses.append(loss.item())
        opt.step()
    with open(os.path.join(folder, "curve.json"), "w") as f:
        json.dump({"options": OPTIONS, "batch": BATCH, "seq_len": T, "tokens": tokens,
                   "loss": losses, "grad_norm": norms}, f, indent=0)
    print(name, sum(p.numel() for p in model.parameters()), losses[0], losses[-1], norms[0])


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in sys.argv[1:] or MODELS:
        train(name, MODELS[name])


if __name__ == "__main__":
    main()
