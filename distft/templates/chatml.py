"""ChatML: roles between <|im_start|> and <|im_end|>; Qwen, SmolLM2, Yi and many others."""

from distft.plugin import Template

TEMPLATE = Template(
    name="chatml",
    summary="<|im_start|>role, content <|im_end|>",
    source="openai-python v0.27, chatml.md; Qwen2 and SmolLM2",
    tokens=("<|im_start|>", "<|im_end|>"),
    end="<|im_end|>",
    text=(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
)
