"""Tokenizers beside those of transformers and llama.cpp, on texts that go wrong easily.

    pip install transformers gguf
    python tokenizer_records.py              # writes the records in tokenizers/
    python tokenizer_records.py --check      # writes elsewhere and compares with the committed files
    python tokenizer_records.py --file tokenizer.json --binary target/release/examples/tokens
                                      # a published tokenizer.json in transformers and here, on every character there is
    python tokenizer_records.py --gguf MODEL.gguf --binary target/release/examples/tokens
                                      # a GGUF file's tokenizer in llama.cpp and here; needs llama-cpp-python

A record is a GGUF file with a tiny model whose tokenizer was trained on the texts below, and what transformers makes of each
text with the same vocabulary and the rules of the model's makers: tokens, and the text that comes back from each beginning of
them, characters cut in the middle among these. Bytes that are no UTF-8 are read as U+FFFD, as Python's `errors="replace"` and
llama.cpp do. `--file` and `--gguf` end with 1 where a token differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

TEXTS = [
    b"",
    b" ",
    b"The rope holds. It's Bob's, they're sure; WE'LL see, I'D say: 'tis 3.14159, 1,000,000 and 0x1F600!",
    "naïve café, Ångström, ﬁne ligature, ½ cup, x² + y³ ≤ ∞, “quotes” – dashes — and…".encode(),
    "e\u0301 A\u030a \u1100\u1161\u11a8 \u0915\u094d\u0937 \u0e01\u0e33 n\u0303o\u0304".encode(),
    "登山用のロープは切れない。攀岩绳永不断裂!등산 로프는 안전합니다. 第12345回".encode(),
    "Канат держит. Το σχοινί κρατά. الحبل يمسك ١٢٣٤٥. החבל מחזיק. रस्सी १२३४ थामती है। เชือกยึดอยู่".encode(),
    "🧗‍♀️🧗🏽‍♂️ 👨‍👩‍👧‍👦 🇩🇪🇯🇵 ❤️ 1️⃣ \U0001f600\U0001f9ea\U0010fffd".encode(),
    b"fn main() {\n\tlet x: Vec<u8> = vec![0; 1_000];\n\n\n    if x.len() >= 1e3 as usize && !x.is_empty() { return; }\r\n}\n",
    b"def f(a, *b, **c):\n    return {k: v**2 for k, v in c.items()}  # comment\n\n\n",
    b"\t\t  \n \n\r\n\r \x0b\x0c  trailing   ",
    bytes(range(0x20)) + b"\x7f",
    "\u0000\u0080\u0085\u00a0\u00ad\u200b\u200c\u200d\u200e\u2028\u2029\u202e\u2060\u3000\ufeff\ufffc\ufffd".encode(),
    b"begin \xff\xfe middle \xc3( cut \xe2\x82 and \xf0\x9f\x98 then \xed\xa0\x80 over \xf4\x90\x80\x80 \xc0\xaf end",
    b"\x80\xbf lone continuation, then good again: " + "é漢🧗".encode() + b"\xe6\xbc",
    b"<|begin|>user<|end|> not <|begin |> nor <|END|>, but<|end|><|end|>",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + b" " * 33 + b"=" * 40 + b"\n" * 17,
    "ǅ ǈ ß ẞ İ ı ſ K Ω 𝒜𝓫𝔠 ①② Ⅷ ㍿ ﷽ ꙮ 𒐫 𓀀 ᠎ ٠۰०0".encode(),
    b"https://example.org/a?b=c&d=%20#e  user@example.org  C:\\dir\\file.txt  ~/x/../y  $HOME ${x} `z` a_b-c",
    b"don't DON'T Don'T can't've y'all'd s's 's 'S 't'T 're 'VE 'm 'll",
]
MARKERS = ["<|begin|>", "<|end|>"]

WORDS = {
    3: r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def text_of(data):
    return data.decode("utf-8", errors="replace")


def deepseek_rules(pre, regex):
    """As the published file has them: digits by three, then Chinese and Japanese, then the rest."""
    signs = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + "\r\n" + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    rules = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", signs + "\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
    return [pre.Split(regex(rule), "isolated") for rule in rules]


def makers(cut, vocabulary, merges):
    """The tokenizer with a vocabulary and the rules of a cut's makers."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Tokenizer, Qwen2Tokenizer

    if cut == "gpt-2":
        return GPT2Tokenizer(vocab=vocabulary, merges=merges, unk_token=None, bos_token=None, eos_token=None).backend_tokenizer
    if cut == "qwen2":
        return Qwen2Tokenizer(
            vocab=vocabulary, merges=merges, unk_token=None, eos_token=None, pad_token=None).backend_tokenizer
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [pre_tokenizers.Split(Regex(WORDS[3]), "isolated"), whole],
        "deepseek-v3": [*deepseek_rules(pre_tokenizers, Regex), whole],
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts[cut])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained(cut):
    """A vocabulary of 400 tokens and its merges, from the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = makers(cut, {}, []).pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=400, min_frequency=1, show_progress=False, special_tokens=MARKERS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator([text_of(text) for text in TEXTS if b"<|" not in text], trainer)
    said = json.loads(tokenizer.to_str())["model"]
    return said["vocab"], [tuple(merge) for merge in said["merges"]]


def record(folder, cut):
    import gguf
    import numpy as np
    from tokenizers import AddedToken

    vocabulary, merges = trained(cut)
    tokenizer = makers(cut, vocabulary, merges)
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    writer = gguf.GGUFWriter(folder / f"{cut}.gguf", "llama")
    width, heads = 8, 1
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda entry: entry[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in MARKERS else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(vocabulary[MARKERS[0]])
    writer.add_eos_token_id(vocabulary[MARKERS[1]])
    # Llama begins texts with its marker; the others do not.
    begins = cut == "llama-bpe"
    writer.add_add_bos_token(begins)
    shapes = {
        "token_embd": (len(tokens), width), "output_norm": (width,), "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,),
    } | {f"blk.0.{part}": (width, width) for part in
         ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for name, shape in shapes.items():
        dtype = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    texts = []
    for data in TEXTS:
        made = tokenizer.encode(text_of(data), add_special_tokens=False).ids
        back = [tokenizer.decode(made[:count], skip_special_tokens=True) for count in range(0, len(made) + 1, 8)]
        texts.append({"bytes": data.hex(), "tokens": [vocabulary[MARKERS[0]]] * begins + made, "back": back})
    lines = ",\n".join(json.dumps(text, ensure_ascii=True) for text in texts)
    (folder / f"{cut}.json").write_text(f"[\n{lines}\n]\n")


def records(check):
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere) if check else HERE / "tokenizers"
        folder.mkdir(exist_ok=True)
        for cut in ("gpt-2", "smollm", "qwen2", "llama-bpe", "deepseek-v3"):
            record(folder, cut)
        for path in sorted(folder.iterdir()):
            print(f"{path.name}: {path.stat().st_size} bytes")
            if check:
                assert path.read_bytes() == (HERE / "tokenizers" / path.name).read_bytes(), f"{path.name} differs"


def every_character():
    """Every character in a few surroundings, 64 at a time."""
    whole = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(whole), 64):
        part = whole[start : start + 64]
        yield "".join(f"a{c}b {c} {c}1{c}{c}\n" for c in part).encode()


def ours(binary, source, texts):
    lines = "\n".join(text.hex() for text in texts)
    done = subprocess.run([binary, str(source)], input=lines + "\n", check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.rstrip("\n").split("\n")]


def tell(data, mine, want):
    """Where two lists part."""
    same = next((at for at, pair in enumerate(zip(mine, want)) if pair[0] != pair[1]), min(len(mine), len(want)))
    part = slice(max(same - 4, 0), same + 8)
    print(f"differs at token {same} of {text_of(data)[:40]!r}\n  here   {mine[part]}\n  theirs {want[part]}")


def beside_transformers(source, binary):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(source), clean_up_tokenization_spaces=False)
    texts = TEXTS + list(every_character())
    said, wrong, count = ours(binary, source, texts), 0, 0
    for data, mine in zip(texts, said, strict=True):
        want = theirs(text_of(data))["input_ids"]
        back = theirs.decode(want, skip_special_tokens=True)
        count += len(want)
        if mine["tokens"] != want or mine["text"] != back:
            wrong += 1
            tell(data, mine["tokens"], want)
    print(f"{source}: {len(texts) - wrong} of {len(texts)} texts, {count} tokens, are transformers'")
    return wrong


def beside_llama_cpp(source, binary):
    import llama_cpp

    theirs = llama_cpp.Llama(str(source), vocab_only=True, verbose=False)
    # Nothing is assigned in planes 4 to 13, and a vocabulary may have no token for the first byte of what is there (SmolLM2
    # has none): llama.cpp leaves such a byte out after it merged, transformers and we before.
    texts = TEXTS + [text for text in every_character() if not 0x40000 <= ord(text.decode()[1]) < 0xE0000]
    said, wrong, count = ours(binary, source, texts), 0, 0
    for data, mine in zip(texts, said, strict=True):
        want = theirs.tokenize(text_of(data).encode(), add_bos=True, special=True) if data else mine["tokens"]
        count += len(want)
        if mine["tokens"] != want:
            wrong += 1
            tell(data, mine["tokens"], want)
    print(f"{source}: {len(texts) - wrong} of {len(texts)} texts, {count} tokens, are llama.cpp's")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--binary", default="target/release/examples/tokens")
    arguments = parser.parse_args()
    if arguments.file:
        return int(beside_transformers(arguments.file, arguments.binary) > 0)
    if arguments.gguf:
        return int(beside_llama_cpp(arguments.gguf, arguments.binary) > 0)
    records(arguments.check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
