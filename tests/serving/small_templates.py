"""Chat templates in the manner of those that checkpoints have, each a few lines."""

MIXTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
)
SHOUTING = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}</s>{% endfor %}"
DEVELOPER = "{% for m in messages %}<{{ m.role }}{% if m.role == 'developer' %}!{% endif %}>{{ m.content }}{% endfor %}"
DEAF = "{% for m in messages %}{{ m.role }}</s>{% endfor %}"

TEMPLATES = {
    "mixtral": MIXTRAL,
    "chatml": CHATML,
    "llama": LLAMA,
    "zephyr": ZEPHYR,
    "thinking": THINKING,
    "shouting": SHOUTING,
    "deaf": DEAF,
}
