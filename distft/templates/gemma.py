"""Gemma: turns of user and model; what the system says stands before the first question."""

from distft.plugin import Template

TEMPLATE = Template(
    name="gemma",
    summary="<start_of_turn>role, content <end_of_turn>; no role for the system",
    source="Gemma (Gemma Team 2024), section 4, formatting",
    tokens=("<start_of_turn>", "<end_of_turn>"),
    end="<end_of_turn>",
    text=(
        "{{ bos_token }}{% set first = namespace(system='') %}"
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% set first.system = message['content'] + '\n\n' %}"
        "{% elif message['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}"
        "{% generation %}{{ message['content'] + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ '<start_of_turn>' + message['role'] + '\n' + first.system }}"
        "{{ message['content'] + '<end_of_turn>\n' }}{% set first.system = '' %}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
)
