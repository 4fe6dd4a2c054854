"""Chooses the output's chat template: one of the models', a named one, or Jinja text from the config."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import WeightopsError
from ...io.companions import TEMPLATE_FOLDER
from ...io.folder import read_json
from ...io.small_files import read_beside
from ...io.tokenizer import OLDER_TEMPLATE, SETTINGS, TEMPLATE
from ...io.weights import Weights

_MARKER = re.compile(r"<\|[\w ]+?\|>|\[\|[\w ]+?\|\]")

#: Templates by mergekit's names; the text is ours, written from each format's description.
TEMPLATES = {
    "chatml": """\
{%- for message in messages -%}
    {{- "<|im_start|>" ~ message.role ~ "\\n" ~ message.content ~ "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
""",
    "llama3": """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- "<|start_header_id|>" ~ message.role ~ "<|end_header_id|>\\n\\n" -}}
    {{- message.content | trim ~ "<|eot_id|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" -}}
{%- endif -%}
""",
    "exaone": """\
{%- if messages and messages[0].role != "system" -%}
    {{- "[|system|][|endofturn|]\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "[|" ~ message.role ~ "|]" ~ message.content -}}
    {{- "\\n" if message.role == "user" else "[|endofturn|]\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "[|assistant|]" -}}
{%- endif -%}
""",
    "mistral": """\
{%- set head = messages[0].content ~ "\\n\\n" if messages[0].role == "system" else "" -%}
{{- bos_token -}}
{%- for message in (messages[1:] if messages[0].role == "system" else messages) -%}
    {%- if message.role != ("user" if loop.index0 % 2 == 0 else "assistant") -%}
        {{- raise_exception("user and assistant must take turns, the user first") -}}
    {%- elif message.role == "user" -%}
        {{- " [INST] " ~ (head if loop.first else "") ~ message.content ~ " [/INST]" -}}
    {%- else -%}
        {{- " " ~ message.content ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}
""",
    "alpaca": """\
{%- set titles = {"user": "### Instruction:\\n", "user_context": "### Input:\\n", "assistant": "### Response:\\n"} -%}
{%- for message in messages -%}
    {{- titles.get(message.role, "") ~ message.content | trim -}}
    {{- "" if loop.last else "\\n\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != "assistant" -%}
    {{- "\\n\\n### Response:\\n" -}}
{%- endif -%}
""",
}


def template_of(source: Weights) -> str | None:
    """A model's chat template; the one named ``default`` if it has several.

    Raises:
        WeightopsError: the file with the template is not valid.
    """
    folder = source.folder
    if folder is None:
        return None
    if (folder / TEMPLATE).exists():
        return _text(folder / TEMPLATE)
    for file in (SETTINGS, OLDER_TEMPLATE):
        template = read_json(folder / file).get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


def _text(file: Path) -> str:
    try:
        return read_beside(file.parent, file.name).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightopsError(f"{file}: cannot be read as text; restore or download the file again") from error


def choose_template(choice: str, models: Mapping[str, Weights], order: Sequence[str]) -> tuple[str | None, str]:
    """The template that a config names, and a note on where it comes from.

    Args:
        choice: ``auto`` (the template most models have, and on a tie the first model's), a name, or Jinja.
        order: The models to look at.
    """
    if choice != "auto":
        text = TEMPLATES.get(choice, choice)
        return text, f"chat template: {choice if choice in TEMPLATES else 'from the config'}"
    templates = {model: template.strip() for model in order if (template := template_of(models[model]))}
    if not templates:
        return None, "chat_template: auto: none of the models has one"
    most, count = Counter(templates.values()).most_common(1)[0]
    first = next(model for model, template in templates.items() if template == most)
    return most, f"chat template: that of {first} ({count} of {len(order)} models have it)"


def unknown_markers(template: str, tokens: Mapping[str, Any]) -> list[str]:
    """Markers such as ``<|im_end|>`` in a template that are not tokens, so the tokenizer splits them."""
    return [marker for marker in dict.fromkeys(_MARKER.findall(template)) if marker not in tokens]


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """The tokenizer files with this chat template and no other."""
    kept = {
        name: data
        for name, data in files.items()
        if name != OLDER_TEMPLATE and not name.startswith(f"{TEMPLATE_FOLDER}/")
    }
    if SETTINGS in kept and b'"chat_template"' in kept[SETTINGS]:
        settings = json.loads(kept[SETTINGS])
        settings.pop("chat_template", None)
        kept[SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return {**kept, TEMPLATE: template.encode()}
