"""The parts of `verify` and `record`: who is compared, over which positions, what is kept on the way, what comes out.

`sides` proves that the models can be compared, `windows` says what is scored, `recording` is the .yref file, `journal`
what an interrupted run leaves, `results` the values that `report` shows. `yarn_gguf.verify` puts them together.
"""
