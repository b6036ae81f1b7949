"""The llama.cpp side: our patch series, the sources it is for, the libraries that are built from them.

    unified_diff    a patch's text → hunks; hunks on text, forwards and backwards
    series          the patches that ship with us, and the state of a tree under them
    sources         the llama.cpp tree inside the sdist of the installed llama-cpp-python
    recipes         backend → what CMake is told; data
    build           a tree → libraries in the user's cache folder
    libraries       which libraries there are, what each can do, and which one a command means

Nothing here loads a library into this process: a child asks it.
"""
