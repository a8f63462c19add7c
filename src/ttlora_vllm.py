"""The entry point of the vLLM plugin: vLLM imports it in all its processes, whether or not it serves our adapters."""

import os


def register() -> None:
    """Register the resolver of TT-LoRA adapters, where ``TTLORA_ADAPTERS`` names folders with some."""
    if os.environ.get("TTLORA_ADAPTERS"):
        from ttlora.serving.vllm import register as register_resolver

        register_resolver()
