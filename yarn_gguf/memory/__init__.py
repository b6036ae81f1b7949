"""Bytes of weights, KV cache and buffers of a model in llama.cpp, by headers alone; what fits, and what it costs.

    sources   what a person names -> shapes          shape     a model's headers -> what its memory depends on
    cache     keys, values and states at a context   graph, attention, layers   the tensors of the compute graph
    allocate  ggml's allocator, replayed on them     needs     all of it, by device; what fits
    devices   the memory that is here                quality, measuring, advice   prices, and what is to be done

Imports point from right to left and from below upwards: `needs` knows no source, `allocate` no model.
"""
