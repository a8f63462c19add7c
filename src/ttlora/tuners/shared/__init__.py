"""What methods have in common whose parameters serve many layers at once: MetaTT and LoRTA."""
