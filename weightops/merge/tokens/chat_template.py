"""The chat template of an output: one that the models have, one by name, or the config's own Jinja."""

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

#: mergekit's names, written anew from each format's description.
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
    """A model's chat template, the default one where it has several by name.

    Raises:
        WeightopsError: a file that should hold it is not valid.
    """
    folder = source.folder
    if folder is None:
        return None
    if (folder / TEMPLATE).exists():
        return _text(folder / TEMPLATE)
    for file in (SETTINGS, OLDER_TEMPLATE):
        found = read_json(folder / file).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _text(file: Path) -> str:
    try:
        return read_beside(file.parent, file.name).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightopsError(f"{file}: cannot be read as text; restore or download the file again") from error


def choose_template(asked: str, models: Mapping[str, Weights], order: Sequence[str]) -> tuple[str | None, str]:
    """The template that a config asks for, and a note on where it is from.

    Args:
        asked: ``auto`` (what most models have; among equals the first model's), a name, or Jinja.
        order: The models to look at.
    """
    if asked != "auto":
        text = TEMPLATES.get(asked, asked)
        return text, f"chat template: {asked if asked in TEMPLATES else 'as the config writes it'}"
    found = {model: theirs.strip() for model in order if (theirs := template_of(models[model]))}
    if not found:
        return None, "chat_template: auto: none of the models has one"
    most, count = Counter(found.values()).most_common(1)[0]
    first = next(model for model, theirs in found.items() if theirs == most)
    return most, f"chat template: that of {first} ({count} of {len(order)} models have it)"


def unknown_markers(template: str, tokens: Mapping[str, Any]) -> list[str]:
    """Markers such as ``<|im_end|>`` that a template writes and that are no tokens, so they fall into pieces."""
    return [marker for marker in dict.fromkeys(_MARKER.findall(template)) if marker not in tokens]


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Tokenizer files that hold this template and no other."""
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
