"""A model at work: which context and which RoPE it is opened with, a text that it goes on with, a server of it.

`scaling` decides on RoPE, `wanted` says what a person asks for, `session` talks to `child` (where llama.cpp and chat
templates work), `generate` puts them together; `serving` starts a server with the same settings.
"""
