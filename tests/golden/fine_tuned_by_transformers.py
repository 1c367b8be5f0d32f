"""Shows that a transformers model that is fine-tuned here, in full and with adapters, opens there again and computes the same,
and that its losses are those of a plain loop of PyTorch's AdamW over transformers' own model on the same batches.

    python fine_tuned_by_transformers.py target/release/toprope [--only RECORD,RECORD] [--kinds full,chat,LoRA,DoRA]

Every record in hub/ is trained on: in full, on conversations (the loss is on what the assistant said, as transformers' mask of its
tokens has it), and with adapters. Adapters are looked at merged; where `peft` is installed, also as PEFT loads them, and trained
on by PEFT from our state. Ends with 1 where a logit lies further than 1e-4 of the largest from `toprope eval`'s, or a loss
further than 1e-4 from PyTorch's.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from folders import BOUND, apart, asked, opened, records, toprope
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

STEPS, BEHIND, SEQUENCE = 8, 4, 24
RATE, DECAY, BETAS, EPSILON = 2e-3, 0.1, (0.9, 0.95), 1e-8
# One sequence holds both documents, so that each step's batch is known: the marker, the words, the marker.
DOCUMENTS = [[3, 7, 11, 7, 3, 5, 2, 30], [8, 9, 10, 4, 12, 13, 6, 9, 8, 14, 32, 8]]
RECIPE = """
name = "fine-tuned"
seed = 5
[training]
steps = {steps}
sequence = {sequence}
batch = 1
dtype = "f32"
mtp_weight = 1e-9        # transformers has no prediction modules
balance_alpha = 0.0      # and no balance loss
bias_update_rate = 0.0   # and leaves the selection bias as it is
[schedule]
kind = "constant"
learning_rate = {rate}
[optimizer]
beta1 = {betas[0]}
beta2 = {betas[1]}
epsilon = {epsilon}
weight_decay = {decay}
clip = 0.0
[checkpoint]
every = {behind}
[data]
paths = ["{data}"]
validation_fraction = 0.0
{more}
"""
TEXT = 'document_separator = "\\n"'
CHAT = '[data.chat]'
CONVERSATIONS = [
    {"messages": [("user", "w3 w7"), ("assistant", "w11 w7 w3"), ("user", "w5"), ("assistant", "w2 w30")]},
    {"messages": [("system", "w8 w9"), ("user", "w10"), ("assistant", "w4 w12 w13")],
     "tools": [{"w7": "w6 < w5, don't", "w2": 1}]},
]
for conversation in CONVERSATIONS:
    conversation["messages"] = [{"role": role, "content": content} for role, content in conversation["messages"]]
TEMPLATE = (
    "{% if tools is not none %}<|system|> {{ tools | tojson }} {% for key in tools[0] %}{{ key }} {% endfor %}<|end|> {% endif %}"
    "{% for message in messages %}<|{{ message.role }}|> "
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }} <|end|>{% endgeneration %}"
    "{% else %}{{ message.content }} <|end|>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
MARKERS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
KINDS = ("full", "chat", "LoRA", "DoRA")
ADAPTER = TEXT + """
[adapter]
rank = 3
alpha = 6.0
targets = ["all-linear"]
"""


def far_apart(binary, folder, model, out):
    return apart(binary, folder, model, [token for document in DOCUMENTS for token in document], out)


def of_documents(end):
    """Tokens of each document, and which of them are predicted."""
    return [([end, *document, end], [0] + [1] * (len(document) + 1)) for document in DOCUMENTS]


def of_conversations(folder):
    # The class that the folder names: an architecture's own would cut words in its own way.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    made = []
    for conversation in CONVERSATIONS:
        each = tokenizer.apply_chat_template(
            conversation["messages"], tools=conversation.get("tools"), tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True)
        made.append((each["input_ids"], each["assistant_masks"]))
    return made


def loss_of(model, documents):
    """The mean over the targets of all documents; attention ends at a document's border."""
    losses = []
    for document, predicted in documents:
        tokens = torch.tensor([document])
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        losses.append(each[torch.tensor(predicted[1:], dtype=torch.bool)])
    return torch.cat(losses).mean()


def trained(model, steps, documents, moments=lambda _: None):
    """Losses of a plain loop; `moments` gives the step and both moments that a parameter begins with."""
    named = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    groups = [{"params": [each for _, each in named if (each.dim() > 1) == matrix],
               "weight_decay": DECAY if matrix else 0.0} for matrix in (True, False)]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    for name, each in named:
        if (known := moments(name)) is not None:
            step, m, v = known
            optimizer.state[each] = {"step": torch.tensor(float(step)), "exp_avg": m, "exp_avg_sq": v}
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, documents)
        loss.backward()
        for _, each in named:
            # A parameter that no gradient reaches (an expert that nobody chose) decays here and has moments all the same.
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def losses_of(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    parts = [dict(json.loads(line)["parts"]) for line in lines]
    return [part["main"] for part in parts]


def with_words(model, vocabulary):
    """Puts a tokenizer of one word a token into a folder, the last four of them markers."""
    words = {f"w{word}": word for word in range(vocabulary - len(MARKERS))}
    markers = {marker: len(words) + index for index, marker in enumerate(MARKERS)}
    added = [{"id": word, "content": marker, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for marker, word in markers.items()]
    words |= markers
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": MARKERS[-1], "chat_template": TEMPLATE}))


class Verdict:
    failed = False

    def say(self, name, what, far):
        self.failed |= not far < BOUND
        print(f"{name}: {what} {far:.1e} apart{'' if far < BOUND else ', too far'}", flush=True)

    def losses(self, name, what, ours, theirs):
        far = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
        self.say(name, f"{what} ({theirs[0]:.4f} to {theirs[-1]:.4f})", far)


def main():
    parser = asked(__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of these ways of training, not all")
    arguments = parser.parse_args()
    binary, verdict, kinds = arguments.toprope, Verdict(), arguments.kinds.split(",")
    assert set(kinds) <= set(KINDS), f"--kinds: choose of {KINDS}"
    try:
        from peft import PeftModel
    except ImportError:
        PeftModel = None
        print("peft is not installed: adapters are looked at merged only")
    with tempfile.TemporaryDirectory() as room:
        room = Path(room)
        data = room / "text.txt"
        data.write_text("\n".join(" ".join(f"w{token}" for token in document) for document in DOCUMENTS))
        talk = room / "talk.jsonl"
        talk.write_text("\n".join(map(json.dumps, CONVERSATIONS)))
        for record in records(arguments):
            place = room / record.name
            place.mkdir()
            base = place / "base"
            # Unpacked to F32: transformers trains no eight-bit weights.
            toprope(binary, "export", record, base)
            vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
            with_words(base, vocabulary)
            plain = of_documents(vocabulary - 1)

            def run(kind, more, steps, *flags, data=data, sequence=SEQUENCE):
                recipe = place / f"{kind}.toml"
                recipe.write_text(RECIPE.format(
                    steps=steps, sequence=sequence, rate=RATE, betas=BETAS, epsilon=EPSILON, decay=DECAY,
                    behind=BEHIND, data=data, more=more))
                folder = place / kind
                toprope(binary, "train", recipe, "--run", folder, *(flags or ("--from", base)))
                return folder

            if "full" in kinds:
                folder = run("full", TEXT, STEPS)
                theirs = trained(opened(base), STEPS, plain)
                verdict.losses(record.name, "losses in full", losses_of(folder), theirs)
                exported = place / "full-exported"
                toprope(binary, "export", folder, exported)
                verdict.say(record.name, "logits in full", far_apart(binary, exported, opened(exported), place / "1"))

            if "chat" in kinds:
                documents = of_conversations(base)
                sequence = sum(len(tokens) for tokens, _ in documents)
                folder = run("chat", CHAT, STEPS, data=talk, sequence=sequence)
                theirs = trained(opened(base), STEPS, documents)
                verdict.losses(record.name, "losses of conversations", losses_of(folder), theirs)
                exported = place / "chat-exported"
                toprope(binary, "export", folder, exported)
                assert of_conversations(exported) == documents, "another tokenizer or template"

            for kind, more in {"LoRA": ADAPTER, "DoRA": ADAPTER + "dora = true\n"}.items():
                if kind not in kinds:
                    continue
                folder = run(kind, more, BEHIND)
                early = place / f"{kind}-early"
                toprope(binary, "export", folder, early)
                state = load_file(folder / f"checkpoints/step-{BEHIND:08}/state.safetensors")
                run(kind, more, STEPS, "--resume", "--steps", STEPS)
                merged, adapters = place / f"{kind}-merged", place / f"{kind}-adapters"
                toprope(binary, "export", folder, merged, "--merge")
                toprope(binary, "export", folder, adapters)
                far = far_apart(binary, merged, opened(merged), place / f"{kind}-2")
                verdict.say(record.name, f"logits with {kind} merged", far)
                if PeftModel is not None:
                    loaded = PeftModel.from_pretrained(opened(base), adapters)
                    far = far_apart(binary, merged, loaded, place / f"{kind}-3")
                    verdict.say(record.name, f"PEFT's logits with {kind}", far)

                    def moments(name):
                        own = name.removeprefix("base_model.model.").replace(".default", "")
                        own = own.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
                        return BEHIND, state[f"{own}.m"].clone(), state[f"{own}.v"].clone()

                    loaded = PeftModel.from_pretrained(opened(base), early, is_trainable=True)
                    theirs = trained(loaded, STEPS - BEHIND, plain, moments)
                    verdict.losses(record.name, f"losses with PEFT's {kind}", losses_of(folder)[BEHIND:], theirs)
    return int(verdict.failed)


if __name__ == "__main__":
    sys.exit(main())
