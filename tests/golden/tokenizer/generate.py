"""Writes the tokenizer goldens: what Hugging Face's tokenizers trains, encodes and decodes.

    python3 generate.py        (packages: tokenizers 0.23.3)

train.txt      the text that is trained on, put together here
gpt2/ llama3/  tokenizers trained on it, as the library saves them
smollm/ flags/ llama3-full/   made from them: other pre-tokenizers, added tokens, normalizer, templates
llama2/ llama2-metaspace/ letters/   characters instead of bytes, as in tokenizers that were SentencePiece's
cases.json     texts with the ids and the decoded text that the library gives for each tokenizer
"""

import copy
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
VOCAB = 640
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

SENTENCES = [
    "The shepherd counted his sheep before the sun went down, and they weren't all there.",
    "It's a long way to the river; we'll walk, you'd ride, they've flown, I'm late.",
    "In 1999 there were 12345 boats, 3.14 of them blue, 1,000,000 red.",
    "for (int i = 0; i < n; i++) {\n\tif (x[i] == '\\0')\n\t\treturn -1;  // done\n    }",
    "Der Bär läuft über die Brücke, während es in Strömen gießt.",
    "L'été, la forêt s'éveille : où êtes-vous ? « Ici », dit-elle.",
    "Москва встретила нас дождём, и мы долго искали дорогу домой.",
    "옛날 옛적에 깊은 산속에 호랑이가 살았습니다. 호랑이는 떡을 좋아했습니다.",
    "むかしむかし、あるところに、おじいさんとおばあさんがいました。",
    "从前有座山，山里有座庙，庙里有个老和尚。",
    "नदी के किनारे एक छोटा सा गाँव था।",
    "كان يا ما كان في قديم الزمان.",
    "Emoji: 🙂🙂 👩‍👩‍👧 🇫🇷 ❤️ and symbols → ∑ ½ ² €",
    "----------------======== ........ ######## aaaaaaaaaaaa aaaa aaa aa",
]

TEXTS = [
    "", " ", "\n", "a", "  leading and trailing  ", "Hello, world!", "It's he'll WE'LL They'Ve I'D",
    "1 12 123 1234 12345 1.5e-10 ٣٤٥ Ⅷ", "tabs\t\tand\r\nCRLF\r\n\r\nlines\n\n\nend\n",
    "non\u00a0breaking\u00a0 space\u3000wide\u2003em\u180eno", "옛날 옛적에 호랑이가, 한국어!", "むかし、東京で。",
    "🙂👩‍👩‍👧🇫🇷❤️", "e\u0301 vs é, ﬁ, Å Å, \u1112\u1161\u11ab", "x" * 70, "a" * 33 + " " * 40 + "b", "<|endoftext|>",
    "one<|endoftext|>two <|endoftext|> three", "<|begin_of_text|><|start|>user\n\nhi<|eot|>", "<|endoftext", "don't\u2019s",
    "\u0000\u0001\u007f", "\U00031350\U0001fae8\U0010ffff\ufffd", "if (x) {\n        return;\n    }\n", " ſ'ſ K'LL",
    "a <mask> b<mask>  c <pad> <pad>d", "word wordword (word) sword 한word word한", "†† †x†", "caf\u00e9 cafe\u0301 \u0447\u0430\u0439 \u0447\u0430\u0438\u0306 \u0427\u0410\u0419 \u0447\u0430\u0438",
]


def train_text():
    r = random.Random(7)
    lines = []
    for _ in range(160):
        lines.append(r.choice(SENTENCES))
        if r.random() < 0.2:
            lines.append("")
        if r.random() < 0.1:
            lines.append("   indented " + " ".join(r.sample(SENTENCES[0].split(), 5)) + " \r")
    return "\n".join(lines) + "\n"


def train(pre):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train([str(HERE / "train.txt")],
            trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                special_tokens=["<|endoftext|>"], show_progress=False))
    return json.loads(t.to_str())


def added(d, content, **flags):
    token = {"id": 0, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True, **flags}
    vocab = d["model"]["vocab"]
    new = [t for t in d["added_tokens"] if t["content"] not in vocab]
    token["id"] = vocab.get(content, len(vocab) + len(new))
    d["added_tokens"].append(token)
    return token["id"]


def variants(gpt2, llama3):
    full = copy.deepcopy(llama3)
    bos = added(full, "<|begin_of_text|>")
    added(full, "<|end_of_text|>")
    added(full, "<|start|>")
    added(full, "<|eot|>")
    full["model"]["ignore_merges"] = True
    full["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [bos], "tokens": ["<|begin_of_text|>"]}}}]}
    smollm = copy.deepcopy(gpt2)
    smollm["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, gpt2["pre_tokenizer"]]}
    smollm["model"]["merges"] = [" ".join(m) for m in smollm["model"]["merges"]]
    flags = copy.deepcopy(gpt2)
    flags["normalizer"] = {"type": "NFC"}
    flags["pre_tokenizer"]["add_prefix_space"] = True
    added(flags, "<mask>", lstrip=True)
    added(flags, "<pad>", rstrip=True, lstrip=True)
    added(flags, "word", single_word=True, special=False)
    added(flags, "\u0447\u0430\u0438\u0306", normalized=True, special=False)
    added(flags, "†", special=False)
    added(flags, "††", special=True)
    flags["post_processor"] = {"type": "RobertaProcessing", "sep": ["<pad>", flags["added_tokens"][2]["id"]],
                               "cls": ["<mask>", flags["added_tokens"][1]["id"]], "trim_offsets": True, "add_prefix_space": False}
    return {"gpt2": gpt2, "llama3": llama3, "llama3-full": full, "smollm": smollm, "flags": flags}


def train_chars(byte_fallback, normalizer, pre, fuse):
    """Few letters, so that the texts have many that the vocabulary lacks."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse, byte_fallback=byte_fallback))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)] if byte_fallback else []
    words = [w.replace(" ", "▁") for s in SENTENCES for w in s.replace(" ", "\n ").split("\n")] * 3
    t.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=VOCAB, limit_alphabet=90, max_token_length=12, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"] + byte_tokens))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                     special_tokens=[("<s>", 1)])
    d = json.loads(t.to_str())
    d["added_tokens"] = [a for a in d["added_tokens"] if not a["content"].startswith("<0x")]
    return d


def of_chars():
    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    first = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    llama2 = train_chars(True, legacy, None, True)
    added(llama2, "<pad>", rstrip=True)
    added(llama2, "word", single_word=True, normalized=True, special=False)
    metaspace = train_chars(True, None, first, True)
    added(metaspace, "<|endoftext|>")
    added(metaspace, "word", single_word=True, special=False)
    letters = train_chars(False, None, pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True), False)
    return {"llama2": llama2, "llama2-metaspace": metaspace, "letters": letters}


def main():
    (HERE / "train.txt").write_text(train_text(), encoding="utf-8", newline="")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2 = train(byte_level)
    llama3 = train(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    r = random.Random(11)
    texts = TEXTS + ["".join(r.choice(" \t\nabcdez019.,'éßñ한국字🙂\u00a0\u0301") for _ in range(r.randint(1, 60))) for _ in range(16)]
    cases = []
    for name, d in {**variants(gpt2, llama3), **of_chars()}.items():
        (HERE / name).mkdir(exist_ok=True)
        text = json.dumps(d, ensure_ascii=False, separators=(",", ":"))
        (HERE / name / "tokenizer.json").write_text(text, encoding="utf-8")
        t = Tokenizer.from_str(text)
        for s in texts:
            case = {"tokenizer": name, "text": s}
            for key, plain, special in (("ids", False, False), ("plain", True, False), ("special", False, True)):
                t.encode_special_tokens = plain
                case[key] = t.encode(s, add_special_tokens=special).ids
            case["decoded"] = t.decode(case["special"], skip_special_tokens=False)
            case["skipped"] = t.decode(case["special"], skip_special_tokens=True)
            cases.append(case)
    rows = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (HERE / "cases.json").write_text("[\n" + rows + "\n]\n", encoding="utf-8")


main()
