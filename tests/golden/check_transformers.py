#!/usr/bin/env python3
"""Loads a checkpoint in transformers and compares it with tessera.

    check_transformers.py BUILD_DIR CHECKPOINT_DIR [TEXT]

Checks: AutoModelForCausalLM and AutoTokenizer load it without a missing or unexpected key, the
tokenizers give the same ids, the logits of the text agree within 2e-4 (sums of a few hundred fp32
products in another order), and the greedy continuations are the same as long as the two likeliest
tokens are further apart than that. Needs torch and transformers; not part of the test suite.
"""
import subprocess
import sys

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 2e-4


def tessera(build, *args, text=b""):
    return subprocess.run([f"{build}/tessera", *args], check=True, capture_output=True,
                          input=text).stdout


def main():
    build, model_dir = sys.argv[1], sys.argv[2]
    text = sys.argv[3] if len(sys.argv) > 3 else "In the beginning God created the heaven"
    model, info = AutoModelForCausalLM.from_pretrained(model_dir, output_loading_info=True)
    problems = {k: v for k, v in info.items() if v}
    assert not problems, problems
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = tokenizer(text)["input_ids"]
    ours = [int(i) for i in tessera(build, "tokenizer", "encode", model_dir, "--add-special",
                                    text=text.encode()).split()]
    assert ours == ids, (ours, ids)
    model.eval()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    raw = subprocess.run([f"{build}/tests/dump_logits", model_dir, *map(str, ids)], check=True,
                         capture_output=True).stdout
    logits = numpy.frombuffer(raw, dtype=numpy.float32).reshape(theirs.shape)
    error = float(numpy.abs(logits - theirs).max())
    assert error <= TOLERANCE, error
    new = 60
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
    expected = out[0, len(ids):].tolist()
    got = [int(i) for i in tessera(build, "generate", model_dir, "--ids", ",".join(map(str, ids)),
                                   "--max-tokens", str(new), "--temperature", "0").split()]
    assert got == expected[:len(got)] and len(got) >= len(expected) - 1, (got, expected)
    print(f"same {len(ids)} ids, largest logit difference {error:.2g}, "
          f"same {len(got)} greedy tokens")


if __name__ == "__main__":
    main()
