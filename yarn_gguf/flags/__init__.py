"""How to start a model in the programs that people have, so that it gets the RoPE that is meant for it.

`start` says what llama.cpp computes when a program opens a file with parameters and overrides of its own, `choice`
finds the least of them that makes it exact, `programs` puts that in the words of each program, and `remarks` says what
the program would ignore. Nothing here runs a model.
"""
