"""What a model is asked to do: texts whose answer lies at a known distance, cut to an exact number of tokens.

`words` and `text` are plain English and chance; `prompts` are made for one tokenizer. Knows no model and no logits.
"""
