"""Prints the rows of core/regex_newer.c: characters that Hugging Face's split patterns know and
Unicode 14 does not.

    python3.11 unicode.py      (Python 3.11 has the tables of Unicode 14; packages: tokenizers 0.23.3)
"""

import unicodedata

from tokenizers import Regex, pre_tokenizers

KINDS = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf Han".split()
CODES = [c for c in range(1, 0x110000) if not 0xD800 <= c <= 0xDFFF]
TEXT = "".join(map(chr, CODES))


def ranges(kind):
    cut = pre_tokenizers.Split(Regex(r"\p{%s}" % kind), "removed", invert=True)
    for _, (start, end) in cut.pre_tokenize_str(TEXT):
        for i in range(start, end):
            if unicodedata.category(chr(CODES[i])) == "Cn":
                yield CODES[i]


def main():
    assert unicodedata.unidata_version == "14.0.0"
    row = "   "
    for kind in KINDS:
        runs = []
        for c in ranges(kind):
            if runs and runs[-1][1] == c - 1:
                runs[-1][1] = c
            else:
                runs.append([c, c])
        for first, last in runs:
            item = ' {0x%05X, 0x%05X, "%s"},' % (first, last, kind)
            if len(row) + len(item) > 100:
                print(row)
                row = "   "
            row += item
    print(row)


main()
