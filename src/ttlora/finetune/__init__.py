"""One fine-tune: a recipe in, an adapter folder and a result record out."""
