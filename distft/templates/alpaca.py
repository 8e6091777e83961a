"""Alpaca: headings for instruction and response, the end of sequence after each response."""

from distft.plugin import Template

TEMPLATE = Template(
    name="alpaca",
    summary="### Instruction, ### Response, end of sequence; asks for no special token",
    source="Stanford Alpaca (Taori et al. 2023), without its fixed first sentence",
    text=(
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' }}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n\n' }}"
        "{% elif message['role'] == 'tool' %}{{ '### Input:\n' + message['content'] + '\n\n' }}"
        "{% else %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
)
