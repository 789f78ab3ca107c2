"""Writes the .bin/.idx files of this folder with Megatron-LM's own IndexedDatasetBuilder, and
NAME.txt with what Megatron's own IndexedDataset reads back.

    pip install torch numpy && pip install --no-deps megatron-core==0.16.1
    python generate.py FOLDER

NAME.txt: the dtype; the number of sequences; then one line of ids for each document.
"""

import pathlib
import sys

import numpy
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

# Documents are lists of sequences.
PLAIN = [[[1, 2, 3]], [[299]], [[0, 0, 7, 65000]], [[5] * 11]]
CASES = {
    "uint16": (numpy.uint16, PLAIN, False),
    "int32": (numpy.int32, [[[1, 70000, 3]], [[65535, 65536]], [[2147483647]]], False),
    "int64": (numpy.int64, [[[1, 70000]], [[2147483647]]], False),
    "int16": (numpy.int16, [[[1, 32767]], [[0]]], False),
    "int8": (numpy.int8, [[[1, 127]], [[0]]], False),
    "uint8": (numpy.uint8, [[[1, 255]], [[0, 128]]], False),
    # several sequences in a document, an empty document, empty sequences
    "nested": (numpy.uint16, [[[1, 2], [3]], [], [[], [4, 5, 6], []], [[7], [8], [9]]], False),
    "empty": (numpy.uint16, [], False),
    "modes": (numpy.uint16, PLAIN, True),
    # what tsr_indexed_create must write: ids at both ends of the two dtypes it uses
    "vocab_65499": (DType.optimal_dtype(65499), [[[0, 65498]], [[17]]], False),
    "vocab_65500": (DType.optimal_dtype(65500), [[[0, 65499]], [[17]]], False),
}


def build(prefix, dtype, documents, modes):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=modes)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64), mode=1)
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def read_back(prefix, modes):
    if pathlib.Path(f"{prefix}.bin").stat().st_size == 0:  # numpy can't map an empty file
        return "uint16\n0\n"
    data = IndexedDataset(str(prefix), multimodal=modes)
    borders = data.document_indices.tolist()
    lines = [data.index.dtype.__name__, str(len(data))]
    for first, end in zip(borders, borders[1:]):
        ids = []
        for i in range(first, end):
            ids += (data[i][0] if modes else data[i]).tolist()
        lines.append(" ".join(map(str, ids)))
    return "\n".join(lines) + "\n"


def main():
    folder = pathlib.Path(sys.argv[1])
    for name, (dtype, documents, modes) in CASES.items():
        build(folder / name, dtype, documents, modes)
        (folder / f"{name}.txt").write_text(read_back(folder / name, modes))


main()
