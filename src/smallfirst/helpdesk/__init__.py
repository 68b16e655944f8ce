"""A simulated help-desk agent: the calls that it makes of a large model, and a server that stands in for that model.

Everything is drawn by a seed from parts of our own (`words.toml`), so the right answer to each call is known by
construction. `tickets` draws customers and their mail, `sites` turns a ticket into the agent's calls, `agent` gives
them in the order of time and as a log, and `large` answers them, right but for a small share.
"""
