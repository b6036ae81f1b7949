"""Processes of their own: programs of ours, since what they load may crash, hang or flood, and those of others.

`process` starts one and talks to it in lines of JSON; `room` is memory that both see; `inside` is the child's end;
`command` runs somebody else's program to its end; `service` has one run until it is told to end.
Knows nothing of models.
"""
