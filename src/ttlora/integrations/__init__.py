"""TT-LoRA inside other programs; each module needs the program that it is named after, and nobody else imports it."""
