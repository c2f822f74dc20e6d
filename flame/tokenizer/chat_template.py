"""The chat template of nanochat's special tokens, for ``apply_chat_template``.

A conversation begins with bos; a system message is put before the first user message. What an assistant says is a
string or a list of parts (``text``, ``python``, ``python_output``). Calls of tools and their answers, as HuggingFace
writes them, become code and output within the turn of the assistant. ``generation`` marks what the model is to learn:
text, code with its marks, and the end of the turn, but neither the beginning of the turn nor any output.
"""

NANOCHAT_TEMPLATE = """\
{%- macro plain(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content or [] -%}
            {%- if part.type != 'text' -%}
                {{- raise_exception("only an assistant's message may hold parts of type " ~ part.type) -}}
            {%- endif -%}
            {{- part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- set turns = namespace(system='', open=false) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first -%}
            {{- raise_exception('a system message must be the first') -}}
        {%- endif -%}
        {%- set turns.system = plain(message.content) ~ '\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- '<|user_start|>' ~ turns.system ~ plain(message.content) ~ '<|user_end|>' -}}
        {%- set turns.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {%- if not turns.open -%}
            {{- '<|assistant_start|>' -}}
        {%- endif -%}
        {%- set parts = message.content or [] -%}
        {%- if parts is string -%}
            {%- set parts = [{'type': 'text', 'text': parts}] -%}
        {%- endif -%}
        {%- for part in parts -%}
            {%- if part.type == 'text' -%}
                {%- generation -%}{{- part.text -}}{%- endgeneration -%}
            {%- elif part.type == 'python' -%}
                {%- generation -%}{{- '<|python_start|>' ~ part.text ~ '<|python_end|>' -}}{%- endgeneration -%}
            {%- elif part.type == 'python_output' -%}
                {{- '<|output_start|>' ~ part.text ~ '<|output_end|>' -}}
            {%- else -%}
                {{- raise_exception('a part is text, python or python_output, not ' ~ part.type) -}}
            {%- endif -%}
        {%- endfor -%}
        {%- for call in message.tool_calls or [] -%}
            {%- set function = call.function or call -%}
            {%- set code = function.arguments -%}
            {%- if code is mapping -%}
                {%- set code = code.code if code.code is defined else (code | tojson) -%}
            {%- endif -%}
            {%- generation -%}{{- '<|python_start|>' ~ code ~ '<|python_end|>' -}}{%- endgeneration -%}
        {%- endfor -%}
        {%- set turns.open = loop.nextitem is defined and loop.nextitem.role == 'tool' -%}
        {%- if not turns.open -%}
            {%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {%- if not turns.open -%}
            {{- raise_exception("a tool's answer must follow an assistant's message") -}}
        {%- endif -%}
        {{- '<|output_start|>' ~ plain(message.content) ~ '<|output_end|>' -}}
        {%- if not loop.last and loop.nextitem.role not in ('tool', 'assistant') -%}
            {%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
            {%- set turns.open = false -%}
        {%- endif -%}
    {%- else -%}
        {{- raise_exception('a role is system, user, assistant or tool, not ' ~ message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if turns.system -%}
    {{- raise_exception('a system message needs a user message to go before') -}}
{%- endif -%}
{%- if add_generation_prompt and not turns.open -%}
    {{- '<|assistant_start|>' -}}
{%- endif -%}
"""
"""Jinja, with the ``generation`` blocks of transformers."""
