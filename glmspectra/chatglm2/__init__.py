"""The native ChatGLM2: configuration, modeling, tokenizer, int4/int8 form, chat."""
