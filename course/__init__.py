"""Teach the engine in twelve steps: each a file with a hole, and a check that says what is wrong.

    make grade        (python -m course)

`catalogue` lists the steps, `holes` has the files as you get them, `checks` what is asked of each,
`judge` runs one check in a process of its own, `grade` prints what is achieved.
"""
