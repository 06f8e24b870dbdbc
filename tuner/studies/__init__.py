"""Studies: several runs of one recipe that answer a question together. curve: does more data help? sweep: which settings are better?"""
