"""Predict, run, measure and draw each optimisation of the engine on this machine.

    python koyeb_vllm_setup.py [--model M] [--only CHAPTERS] [--quick] [--report lab.html]

A chapter is one small file: what it is about, what it expects and from which sum, what it then
measures on the engine's own record. `workbench` holds the loaded engine and runs requests on it,
`drawings` are what a chapter draws, `terminal` and `report` show the same chapter in two places.
"""
