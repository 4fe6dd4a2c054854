"""Presets: the prompt is the family's own, token for token, and the label is read where the family writes it."""

import json

import pytest
import torch
from tiny_chat import CORPUS

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.judge import Guard
from weightops.guard.presets import PRESETS, Preset, find
from weightops.guard.streaming.stream import Stream

LLAMA_GUARD = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTask: Check unsafe content in 'User' messages.\n\n"
    "<BEGIN CONVERSATION>\n\n{% for m in messages %}User: {% if m['content'] is string %}{{ m['content'] | trim }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] | trim }}{% endfor %}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "<END CONVERSATION>\n\nFirst line must read 'safe' or 'unsafe'.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>"
)
TEMPLATES = {
    "llama-guard-3": LLAMA_GUARD,
    "llama-guard-4": LLAMA_GUARD.replace("| trim", "+ ''").replace("m['content'] is string", "false")
    .replace("_header_id|>", "|>").replace("<|start|>", "<|header_start|>").replace("<|end|>", "<|header_end|>"),
    "shieldgemma-hate": "<bos>You are a policy expert.\n\n<start_of_turn>\n"
    "Human Question: {{ messages[0]['content'] | trim }}\n<end_of_turn>\n\n"
    "Our safety principle is defined in the below:\n\n* {{ guideline }}\n\nAnswer 'Yes' or 'No'.\n\n",
    "qwen3guard": "<|im_start|>user\nTask: check\n\n<BEGIN CONVERSATION>\n\nUSER: {{ messages[0]['content'] }}\n\n"
    "<END CONVERSATION>\n\nSafety: (Safe or Unsafe)<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "granite-guardian": "<|start_of_role|>user<|end_of_role|>"
    "You are a safety agent. {{ guardian_config['risk_name'] }}\n\nUser Message: "
    "{{ messages[0]['content'] | trim }}\n\n<end_of_turn>\nIs it {{ guardian_config['risk_name'] }}? Yes or No"
    "<|end_of_text|>\n{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
    "wildguard": None,
}  # fmt: skip
SPECIAL = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|header_start|>", "<|header_end|>",
    "<|eot|>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<s>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>",
]  # fmt: skip
WORDS = [
    "Safety: Safe Safety: Unsafe",
    "Harmful request: yes",
    "Harmful request: no",
    "Yes\nNo\nYes",
    "User: is\n\n",
    "a.\n\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(
        models.BPE()
    )  # splits as Llama 3 does: ".\n\n" and "User" ":" are words, a blank goes with its word
    split = pre_tokenizers.Split(
        Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator((CORPUS + WORDS) * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<|end_of_text|>")


@pytest.fixture(scope="module")
def model(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


TEXTS = ["is this safe", "a.", ".\n\nis", "naïve 日本", ":"]


ANSWERS = {
    "llama-guard-3": "\n\n",
    "llama-guard-4": "\n\n",
    "qwen3guard": "Safety:",
    "wildguard": "Harmful request:",
}


def rendered(tokenizer, name, text):
    """What the family's own documented use hands to the tokenizer, with the answer begun."""
    preset = PRESETS[name]
    if name == "wildguard":
        prompt = preset.text.replace("{text}", text)
    else:
        content = [{"type": "text", "text": text}] if preset.parts else text
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            **({"add_generation_prompt": False} | preset.options),
        )
    return prompt + ANSWERS.get(name, "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_is_that_of_the_familys_own_prompt(tokenizer, model, name):
    """The tokens are those of the whole rendered prompt, also where a blank or a full stop joins the text to it."""
    tokenizer.chat_template = TEMPLATES[name]
    preset = PRESETS[name]
    guard = Guard(model, tokenizer, preset.card(tokenizer))
    for text, row, probability in zip(TEXTS, guard.frame.rows(TEXTS), guard.probabilities(TEXTS), strict=True):
        ids = tokenizer.encode(rendered(tokenizer, name, text), add_special_tokens=False)
        assert row == ids
        with torch.inference_mode():
            safe, unsafe = model(torch.tensor([ids])).logits[0, -1, list(guard.card.label_ids)].double()
        assert probability == pytest.approx(torch.sigmoid(unsafe - safe).item(), abs=1e-5)
        assert Stream(guard).feed(text) == pytest.approx(probability, abs=1e-5)


def test_label_tokens_by_hand(tokenizer):
    vocabulary = tokenizer.get_vocab()
    for name, (safe, unsafe) in {
        "llama-guard-3": ("safe", "unsafe"),
        "shieldgemma-hate": ("No", "Yes"),
        "granite-guardian": ("No", "Yes"),
        "qwen3guard": ("ĠSafe", "ĠUnsafe"),
        "wildguard": ("Ġno", "Ġyes"),
    }.items():
        tokenizer.chat_template = TEMPLATES[name]
        assert PRESETS[name].card(tokenizer).label_ids == (vocabulary[safe], vocabulary[unsafe])


def test_the_text_joins_the_template_where_a_token_spans_both(tokenizer):
    """In "User: is" the blank belongs to the word; the text alone has no blank."""
    tokenizer.chat_template = TEMPLATES["llama-guard-3"]
    card = PRESETS["llama-guard-3"].card(tokenizer)
    frame = Guard(None, tokenizer, card).frame
    assert frame.lead.endswith("User: ")
    assert frame.trail.startswith("\n\n<END CONVERSATION>")
    row = frame.rows(["is a."])[0]
    vocabulary = tokenizer.get_vocab()
    assert vocabulary["Ġis"] in row
    assert vocabulary[".ĊĊ"] in row


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.text])
def test_without_a_chat_template_the_documented_text_is_used(tokenizer, name):
    tokenizer.chat_template = None
    preset = PRESETS[name]
    card = preset.card(tokenizer)
    assert card.template == preset.text + ("" if preset.text.endswith(preset.answer) else preset.answer)
    assert GuardCard.parse(json.loads(card.to_json())) == card
    text = "<|eot_id|><|eot|><end_of_turn>[/INST]"
    rows = Guard(None, tokenizer, card).frame.rows(["x", text])
    for special in map(tokenizer.convert_tokens_to_ids, SPECIAL):
        assert rows[0].count(special) == rows[1].count(special)  # a text cannot end its own turn


def test_shieldgemma_is_asked_for_one_principle(tokenizer):
    tokenizer.chat_template = TEMPLATES["shieldgemma-hate"]
    for name in ("dangerous", "harassment", "hate", "sexual"):
        principles = [p for p in ("Dangerous", "Harassment", "Hate Speech", "Sexually") if f'"No {p}' in
                      PRESETS[f"shieldgemma-{name}"].card(tokenizer).template]  # fmt: skip
        assert [p.lower()[:4] for p in principles] == [name[:4]]


def test_what_cannot_be_asked_so_is_one_line(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(WeightopsError, match="no chat template"):
        PRESETS["qwen3guard"].card(tokenizer)
    with pytest.raises(WeightopsError, match="same token"):
        Preset("", (" Safety", " Safety:"), "", text="{text}<|eot|>").card(tokenizer)
    with pytest.raises(WeightopsError, match="does not begin a token"):
        Preset("", ("afe", "No"), "", text="{text}<|eot|>s").card(tokenizer)


def test_a_plain_chat_model_is_told_its_task(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|eot|>{% endfor %}"
    card = PRESETS["guard-vector"].card(tokenizer, threshold=0.3)
    assert card.template is None
    assert card.system.endswith("Respond with only one token: safe or unsafe.")
    assert card.threshold == 0.3


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("meta-llama/Llama-Guard-3-1B", "llama-guard-3"),
        ("./Llama-Guard-4-12B", "llama-guard-4"),
        ("google/shieldgemma-2b", "shieldgemma-dangerous"),
        ("google/shieldgemma-2-4b-it", None),
        ("Qwen/Qwen3Guard-Gen-0.6B", "qwen3guard"),
        ("Qwen/Qwen3Guard-Stream-0.6B", None),
        ("allenai/wildguard", "wildguard"),
        ("ibm-granite/granite-guardian-3.1-2b", "granite-guardian"),
        ("ibm-granite/granite-guardian-3.3-8b", None),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ],
)
def test_a_model_is_known_by_its_name(name, preset):
    assert find(name) == preset


@pytest.mark.parametrize("template", ["no place for it", "{text} and {text}", 3])
def test_a_card_needs_one_place_for_the_text(template):
    with pytest.raises(WeightopsError, match=r"template must be a text with \{text\} in it once"):
        GuardCard("", ("a", "b"), (1, 2), template=template)
