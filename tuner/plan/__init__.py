"""The plan room: what a run will cost in steps, tokens, memory and time, said before step 1."""
