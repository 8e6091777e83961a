"""Zephyr: the role as a line of its own, the tokenizer's end of sequence after each content."""

from distft.plugin import Template

TEMPLATE = Template(
    name="zephyr",
    summary="<|role|>, content, end of sequence; asks for no special token",
    source="Zephyr (Tunstall et al. 2023), model card of zephyr-7b-beta",
    text=(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
)
