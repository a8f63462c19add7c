"""PEFT methods, a folder each, registered with PEFT when ttlora is imported."""
