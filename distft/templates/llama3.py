"""Llama 3: a header with the role, then the content up to <|eot_id|>."""

from distft.plugin import Template

TEMPLATE = Template(
    name="llama3",
    summary="<|start_header_id|>role<|end_header_id|>, content <|eot_id|>",
    source="Llama 3 model card (Meta 2024), prompt format",
    tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    end="<|eot_id|>",
    text=(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|eot_id|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
)
