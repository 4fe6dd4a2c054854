"""What is learnt of a conversation: the assistant's words with their end marks, whatever the chat template does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import TEMPLATE, tiny_tokenizer

from weightops.errors import WeightopsError
from weightops.rows.chat import chat_tokens, completion_tokens, rendered, text_tokens

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}INSIDE{% endgeneration %}OUTSIDE"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Template and what follows an answer, for styles that are in use.
STYLES = {
    "chatml": (TEMPLATE, "<|im_end|>"),
    "no generation prompt": (TEMPLATE[: TEMPLATE.index("{% if add_gen")], "<|im_end|>"),
    "brackets": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} "
        "[/INST]{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
        " <|im_end|>",
    ),
    "trimmed, roles after one another, or else refused": (
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "system turn by default": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        + TEMPLATE,
        "<|im_end|>",
    ),
    "end of text after the conversation": (
        TEMPLATE.replace("{% if add", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}{% if add"),
        "<|im_end|>",
    ),
    "plain words": (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</turn>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "</turn>",
    ),
    "marked with its end": (MARKED.replace("INSIDE", "<|im_end|>\n").replace("OUTSIDE", ""), "<|im_end|>"),
    "marked without its end": (MARKED.replace("INSIDE", "").replace("OUTSIDE", "<|im_end|>"), "<|im_end|>"),
}
THINKING = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set answer = text.split('</think>')[-1].lstrip('\n') %}"
    "<|im_start|>assistant\n{% if loop.index0 > last.user %}<think>\n"
    "{{ text.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in text }}\n</think>\n\n{% endif %}"
    "{{ answer }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ text }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Shows reasoning only after the last user's message, and an empty one where there is none."""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def learnt(tokenizer, tokens):
    """The texts of each run of tokens that are learnt."""
    runs, current = [], []
    for token, trained in zip(tokens.ids, tokens.trained, strict=True):
        if trained:
            current.append(token)
        elif current:
            runs, current = [*runs, current], []
    return [tokenizer.decode(run) for run in [*runs, *([current] if current else [])]]


def unlearnt(tokenizer, tokens):
    return tokenizer.decode([token for token, trained in zip(tokens.ids, tokens.trained, strict=True) if not trained])


words = st.text(st.sampled_from("ab é日🎉\nINST/[]"), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_what_is_learnt_is_each_answer_with_its_end_mark_and_nothing_else(style, turns):
    template, end = STYLES[style]
    tokenizer = with_template(template)
    messages = [message for question, answer in turns for message in (user(question), assistant(answer))]
    tokens = chat_tokens(tokenizer, messages)
    assert tokenizer.decode(tokens.ids) == rendered(tokenizer, messages)
    learned = learnt(tokenizer, tokens)
    wanted = [answer.strip() + end if "trimmed" in style else answer + end for _, answer in turns]
    if end == " <|im_end|>":  # blanks around an answer may be one token with it
        learned, wanted = ([each.strip() for each in many] for many in (learned, wanted))
    assert learned == wanted


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_that_the_user_repeats_is_learnt_where_the_assistant_says_it(style):
    tokenizer = with_template(STYLES[style][0])
    messages = [
        user("yes"),
        assistant("yes"),
        user("yes yes"),
        assistant("yes yes"),
        user("and yes"),
        assistant("a no"),
    ]
    tokens = chat_tokens(tokenizer, messages)
    assert [each.split("<")[0].strip() for each in learnt(tokenizer, tokens)] == ["yes", "yes yes", "a no"]
    rest = unlearnt(tokenizer, tokens)
    assert rest.count("yes") == 4
    assert "a no" not in rest


def test_earlier_reasoning_that_the_template_drops_is_neither_shown_nor_learnt():
    tokenizer = with_template(THINKING)
    messages = [user("q"), assistant("<think>hm</think>one"), user("r"), assistant("<think>ha</think>two")]
    tokens = chat_tokens(tokenizer, messages)
    assert learnt(tokenizer, tokens) == ["one<|im_end|>", "<think>\nha\n</think>\n\ntwo<|im_end|>"]
    assert "hm" not in tokenizer.decode(tokens.ids)
    plain = chat_tokens(tokenizer, [user("q"), assistant("one"), user("r"), assistant("two")])
    assert learnt(tokenizer, plain) == ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]


def test_a_generation_prompt_that_opens_the_reasoning_is_not_learnt():
    tokenizer = with_template(THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    messages = [user("q"), assistant("<think>hm</think>one"), user("r"), assistant("<think>ha</think>two")]
    assert learnt(tokenizer, chat_tokens(tokenizer, messages)) == ["one<|im_end|>", "ha\n</think>\n\ntwo<|im_end|>"]


@pytest.mark.parametrize(
    "rewriting",
    [
        "{{ message['content'] | upper }}",
        "{{ message['content'] if loop.last else '...' }}",
        "{{ message['content'] if message['role'] == 'user' else message['content'][:3] }}",
    ],
)
def test_a_template_that_rewrites_answers_is_refused_with_the_message(rewriting):
    tokenizer = with_template(TEMPLATE.replace("{{ message['content'] }}", rewriting))
    with pytest.raises(WeightopsError, match="message 2: the chat template rewrites it"):
        chat_tokens(tokenizer, [user("question"), assistant("answer"), user("question"), assistant("answer")])


def test_calls_of_tools_are_learnt_with_the_turn():
    template = TEMPLATE.replace(
        "{{ message['content'] }}",
        "{{ message['content'] if message['content'] }}{% for call in message['tool_calls'] or [] %}"
        "<call>{{ call['name'] }}</call>{% endfor %}",
    )
    calling = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
    messages = [user("time?"), calling, {"role": "tool", "content": "noon"}, assistant("It is noon.")]
    tokenizer = with_template(template)
    assert learnt(tokenizer, chat_tokens(tokenizer, messages)) == [
        "<call>clock</call><|im_end|>",
        "It is noon.<|im_end|>",
    ]


def test_parts_of_text_and_images_are_given_to_the_template():
    template = TEMPLATE.replace(
        "{{ message['content'] }}",
        "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}",
    )
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?", "image": None}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}]}
    tokenizer = with_template(template)
    assert learnt(tokenizer, chat_tokens(tokenizer, [question, answer])) == ["a cat<|im_end|>"]


@pytest.mark.parametrize("style", STYLES)
def test_of_a_prompt_and_its_completion_only_the_completion_is_learnt(style):
    template, end = STYLES[style]
    tokenizer = with_template(template)
    (found,) = learnt(tokenizer, completion_tokens(tokenizer, "asked", "said"))
    assert found.strip() == "said" + end.replace(" ", " " if "brackets" in style else "")
    several = completion_tokens(tokenizer, (user("a"), assistant("b"), user("c")), (assistant("d"),))
    assert [each.split("<")[0].split("[")[0].strip() for each in learnt(tokenizer, several)] == ["d"]


def test_without_a_template_prompt_and_completion_follow_one_another():
    tokenizer = with_template(None)
    tokens = completion_tokens(tokenizer, "2 + 2 =", " 4")
    assert tokenizer.decode(tokens.ids) == "2 + 2 = 4<|im_end|>"
    assert learnt(tokenizer, tokens) == [" 4<|im_end|>"]
    assert completion_tokens(with_template(TEMPLATE), "2 + 2 =", " 4", chat=False) == tokens
    assert learnt(tokenizer, text_tokens(tokenizer, "all of it")) == ["all of it<|im_end|>"]
    assert all(text_tokens(tokenizer, "\ud800 half").trained)
    with pytest.raises(WeightopsError, match="no chat template"):
        completion_tokens(tokenizer, (user("a"),), "b")


def test_what_cannot_be_learnt_from_is_said():
    tokenizer = with_template(STYLES["trimmed, roles after one another, or else refused"][0])
    with pytest.raises(WeightopsError, match="no message of the assistant"):
        chat_tokens(tokenizer, [user("a")])
    with pytest.raises(WeightopsError, match="refuses the conversation .roles must alternate"):
        chat_tokens(tokenizer, [user("a"), user("a"), assistant("b")])


def test_a_real_tokenizer_learns_what_the_assistant_says():
    """SmolLM2: ChatML with a default system turn, a byte-level BPE of 49,152 tokens."""
    from transformers import AutoTokenizer

    from weightops.algebra.opening import open_checkpoint

    tokenizer = AutoTokenizer.from_pretrained(str(open_checkpoint("smollm2-135m-instruct").source.folder))
    messages = [user("hi\n"), assistant("Hello 🎉, naïve 日本語."), user("Hello"), assistant(" spaced \n")]
    tokens = chat_tokens(tokenizer, messages)
    assert list(tokens.ids) == tokenizer.apply_chat_template(messages)["input_ids"]
    assert learnt(tokenizer, tokens) == ["Hello 🎉, naïve 日本語.<|im_end|>", " spaced \n<|im_end|>"]
    assert learnt(tokenizer, completion_tokens(tokenizer, "a", "b")) == ["b<|im_end|>"]


def test_reasoning_in_a_field_of_its_own_is_learnt_where_it_is_shown():
    shown = THINKING.replace(
        "{{ text.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in text }}",
        "{{ m['reasoning_content'] or '' }}",
    )
    tokenizer = with_template(shown)
    tokens = chat_tokens(tokenizer, [user("q"), {**assistant("two"), "reasoning_content": "ha"}])
    assert learnt(tokenizer, tokens) == ["<think>\nha\n</think>\n\ntwo<|im_end|>"]
