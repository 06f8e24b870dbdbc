"""Serving adapters to OpenAI's clients: one base in memory, its adapters by name, one thread that answers them all. Use vLLM for real load."""
