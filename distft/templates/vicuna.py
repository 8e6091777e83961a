"""Vicuna: USER and ASSISTANT in one line, the end of sequence after each answer."""

from distft.plugin import Template

TEMPLATE = Template(
    name="vicuna",
    summary="USER: ... ASSISTANT: ..., end of sequence; asks for no special token",
    source="FastChat (Zheng et al. 2023), conversation template vicuna_v1.1",
    text=(
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}"
        "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['role'] | upper + ': ' + message['content'] + ' ' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
)
